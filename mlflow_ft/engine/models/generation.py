"""A model's generation_config.json: read, and repaired where transformers could not read, save or follow it.

The source folder is never changed: the repaired settings are those that are loaded, trained beside, saved and served.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.generation import logits_process as processors
from transformers.generation.utils import GENERATION_MODES_MAPPING

from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import generation_trial
from mlflow_ft.errors import brief

FILE = "generation_config.json"
CONFIG = "config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
FIRST = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate", "cache_implementation", *TOKENS)
"""What decides whether other settings mean anything: these are taken first."""
ALL = "all of it"
"""What is left out where the file holds no settings."""
OF_CONFIG = "_from_model_config"
"""Says that the file was made of config.json; with it transformers looks at less."""
DEFAULTS: Mapping[str, Any] = {"top_k": 50, "num_beams": 1, "do_sample": False}
"""What `generate` takes where a setting is not given."""
OF_SAMPLING: Mapping[str, Callable[[Any], object]] = {
    "temperature": lambda value: value == 1 or processors.TemperatureLogitsWarper(value),
    "top_k": lambda value: value == 0 or processors.TopKLogitsWarper(value),
}
"""What refuses the values of settings that every call here gives its own of; `generation_trial` tries the others."""
LISTS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
ONE_ANSWER: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "stop_strings": None,
    "token_healing": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "num_beam_groups": None,
    "constraints": None,
    "force_words_ids": None,
}
"""What `generate` is given so that it returns one sequence of tokens a prompt, whatever the model's own settings are:
other ways to search want a tokenizer, one row at a time or code from the Hub."""
GREEDY: Mapping[str, Any] = {**ONE_ANSWER, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
"""The same for the likeliest token at every place."""
SAMPLED: Mapping[str, Any] = {**ONE_ANSWER, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""The same for a sampled answer, as a request that is served asks for it."""
SHARES = ("top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
"""Settings that are a share of the probability: from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The settings as they are used, and what was left out of them."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why, by the setting's name."""
    file: str = FILE
    """Which file of the model's folder they are from."""

    @property
    def config(self) -> GenerationConfig:
        with quiet_transformers():
            return GenerationConfig.from_dict(dict(self.settings))


def read(folder: Path) -> Repaired:
    """The generation settings of a model's folder.

    Returns the file's settings as they are where transformers takes them, and else without those that it refuses. A
    folder without the file has none, unless its config.json has settings that must be left out; where the file holds
    no settings, those of config.json are taken, as transformers does.
    """
    file = folder / FILE
    if not file.is_file():
        of_config = _of_config(folder)
        return of_config if of_config.left_out else Repaired()
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        return _unreadable(folder, f"it is not JSON: {brief(error)}")
    if not isinstance(settings, dict):
        return _unreadable(folder, "it is not a JSON object")
    return repaired(settings)


def _unreadable(folder: Path, reason: str) -> Repaired:
    return Repaired(settings=_of_config(folder).settings, left_out={ALL: reason})


def _of_config(folder: Path) -> Repaired:
    """The generation settings in a model's config.json, where older models have them; transformers saves any."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reported by who loads the model
        config = {}
    known = GenerationConfig().to_dict()
    given = config if isinstance(config, dict) else {}
    settings = {name: given[name] for name in known if given.get(name) is not None}
    failures = generation_trial.failures(settings, GREEDY, SAMPLED)
    left_out = {name: _reason(error, name, settings[name]) for name, error in failures}
    kept = {name: value for name, value in settings.items() if name not in left_out}
    return Repaired(settings={**kept, OF_CONFIG: True} if kept else {}, left_out=left_out, file=CONFIG)


def repaired(settings: Mapping[str, Any]) -> Repaired:
    """Settings without what transformers would refuse to load, to save or to generate with, in the order of the file.

    What only sampling reads is left out of settings that do not sample: transformers ignores it, and so nothing that
    the model says changes.
    """
    ordered = sorted(settings, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    kept: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in ordered:
        value = settings[name]
        reason = _wrong_type(name, value) or _likeliest(settings, name) or _refused({**kept, name: value}, name)
        if reason:
            left_out[name] = reason
        else:
            kept[name] = value
    for name, error in generation_trial.failures(kept, GREEDY, SAMPLED):
        left_out[name] = _reason(error, name, settings[name])
    left = {name: value for name, value in settings.items() if name not in left_out}
    return Repaired(settings=left, left_out=left_out)


def for_loading(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` needs beside a folder whose settings it would refuse, or keep and refuse to save."""
    settings = read(folder)
    return {"generation_config": settings.config} if settings.left_out else {}


def copy(source: Path, folder: Path) -> None:
    """Write a model's settings into another folder, repaired where need be, unless it has settings already."""
    settings = read(source)
    if (folder / FILE).is_file():
        return
    if settings.left_out:
        write(settings.settings, folder)
    elif (source / FILE).is_file():
        shutil.copyfile(source / FILE, folder / FILE)


def write(settings: Mapping[str, Any], folder: Path) -> None:
    """Write settings as the generation_config.json of a folder."""
    (folder / FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def description(repairs: Repaired, folder: Path) -> str:
    """A sentence that says what was left out; empty where nothing was."""
    if not repairs.left_out:
        return ""
    if ALL in repairs.left_out:
        return f"{folder / FILE} is left unchanged and ignored: {repairs.left_out[ALL]}; {CONFIG} is used and saved"
    reasons = "; ".join(f"{name} ({reason})" for name, reason in repairs.left_out.items())
    return f"{folder / repairs.file} is not changed; it is used, and will be saved, without {reasons}"


def _wrong_type(name: str, value: Any) -> str:
    """Why a value cannot be one of this setting; transformers looks at few of them."""
    if value is None:
        return ""
    if name in TOKENS:
        wanted = "a token's id" + (" or a list of them" if name in LISTS else "")
        return "" if all(map(_is_id, _ids(name, value))) else f"{value!r} is not {wanted}"
    if name in LISTS and not isinstance(value, list):
        return f"{value!r} is not a list"
    default = GenerationConfig._get_default_generation_params().get(name)
    if isinstance(default, bool):
        allowed = isinstance(value, bool) or name == "early_stopping"
        return "" if allowed else f"{value!r} is not true or false"
    if isinstance(default, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return ("" if number else f"{value!r} is not a number") or _outside(name, value)
    return _outside(name, value)


def _outside(name: str, value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value!r} is not from 0 to 1" if name in SHARES and not (number and 0 <= value <= 1) else ""


def _likeliest(settings: Mapping[str, Any], name: str) -> str:
    """Why these settings do not sample though they say so: the limit of low temperatures is the likeliest token."""
    if name == "do_sample" and settings[name] and settings.get("temperature") == 0:
        return "a temperature of 0 means greedy decoding, without sampling"
    return ""


def _ids(name: str, value: Any) -> Iterator[Any]:
    yield from value if name in LISTS and isinstance(value, list) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refused(settings: Mapping[str, Any], name: str) -> str:
    """What transformers has against the last of these settings."""
    given = {key: value for key, value in settings.items() if key != OF_CONFIG}
    try:
        with quiet_transformers():
            config = GenerationConfig(**given)
            config.validate(strict=True)
            config.to_json_string()
            if name in OF_SAMPLING and settings[name] is not None:
                OF_SAMPLING[name](settings[name])
            mode = GenerationConfig(**{**DEFAULTS, **given}).get_generation_mode()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return _reason(error, name, settings[name])
    if "/" in GENERATION_MODES_MAPPING[mode]:
        return f"{settings[name]!r} asks for a search method that transformers no longer has"
    return ""


def _reason(error: Exception, name: str, value: Any) -> str:
    """Why, in a few words where the case is a common one, else as transformers puts it."""
    message = str(error)
    if f"`{name}`" in message and "only used in sample-based" in message:
        return f"{value!r}: only sampling reads it, and do_sample is not true"
    if f"`{name}`" in message and "only used in beam-based" in message:
        return f"{value!r}: only beam search reads it, and num_beams is 1"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if f"`{name}`" in line]
    return brief(ValueError(lines[0])) if lines else brief(error)
