"""Bases that read pictures or sound as well as text: which part is trained, and an adapter that fits the whole model.

transformers loads only the text part of some such models (Qwen3.5, Llama 4), whose layers have different names from
those in the whole model that people use and that the files contain:

    model.layers.0.mlp.up_proj                  the text part, Qwen3_5ForCausalLM
    model.language_model.layers.0.mlp.up_proj   the whole, Qwen3_5ForConditionalGeneration
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.engine.adapters import files, fitting
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models.loading import keep_exact, quantization, quiet_peft
from mlflow_ft.engine.models.skeleton import META, UnsuitedError, bare_model
from mlflow_ft.errors import FineTuneError
from mlflow_ft.rows import Task
from mlflow_ft.values import BaseModel

READS = {"vision": "pictures", "vq": "pictures", "audio": "sound", "speech": "sound", "video": "video"}
"""What a part reads, by the beginning of its config's name."""
PREFIX = "base_model.model."
ANCHORED = ("rank_pattern", "alpha_pattern")
"""Settings whose keys may be whole names of layers."""

OF_A_LIST = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings that are valid with a list of layers, not with a pattern."""
TOKENS = ".token_adapter"
"""The layer that PEFT inserts into one whose tokens are trained."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How a model with other parts than text is loaded."""

    whole: str
    """The class of the whole model, from its config.json."""
    loaded: str
    """The class that is trained."""
    reads: tuple[str, ...]
    """What the other parts read."""

    @property
    def text_alone(self) -> bool:
        """Whether the other parts are left out."""
        return self.whole != self.loaded

    def said(self, name: str, *, adapter: bool) -> str:
        """What happens to the other parts of the model `name` in training, in a sentence or two."""
        others = " and ".join(self.reads)
        if not self.text_alone:
            return (
                f"{name} also reads {others}: all of it is loaded ({self.loaded}), but its part for {others} is not "
                "trained."
            )
        fits = f" The adapter is also tested on the whole model ({self.whole}) at the end." if adapter else ""
        kept = "A merged model" if adapter else "The saved model"
        return (
            f"{name} also reads {others}: only its text part ({self.loaded}) is loaded and trained.{fits} {kept} is "
            f"this text part, which does not read {others}."
        )

    def merged(self, name: str) -> str:
        """What the merged model is if `text_alone`, in a sentence."""
        others = " and ".join(self.reads)
        return f"{name} also reads {others}: only its text part ({self.loaded}) is merged, which does not read {others}"


def of(base: Path, *, task: Task = "generate") -> Parts | None:
    """The parts of the model in a folder; None if it reads only text, or needs code from its repository."""
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except fitting.FAILURES:
        return None  # loading the model reports the error
    names = [name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None]
    kinds = {READS[start]: None for name in names for start in READS if name.startswith(start)}
    auto: Any = AutoModelForSequenceClassification if task == "score" else AutoModelForCausalLM
    if not kinds or type(config) not in auto._model_mapping:
        return None
    candidates = auto._model_mapping[type(config)]
    loaded = (candidates if isinstance(candidates, tuple) else (candidates,))[0]
    same = loaded.config_class is type(config)
    whole = loaded.__name__ if same else next(iter(config.architectures or ()), "")
    return Parts(whole=whole, loaded=loaded.__name__, reads=tuple(kinds))


def rename_for_whole(adapter: Path, base: Path) -> tuple[str, str] | None:
    """Rename the weights of a text part's adapter to the names of the whole model, in its folder.

    PEFT can then load it onto the whole model, and `fitting.put_on` also onto the text part.

    Returns:
        The beginnings of the names in the whole model and in the text part; None if nothing was renamed because the
        whole model is trained, or the adapter cannot be renamed.
    """
    parts = of(base)
    if parts is None or not parts.text_alone:
        return None
    try:
        with quiet_peft(), quiet_transformers():
            renamed = _renamed(adapter, base, parts)
    except (UnsuitedError, FineTuneError, *fitting.FAILURES):
        return None
    if renamed is None:
        return None
    save_file(renamed.state, adapter / files.WEIGHTS, metadata={"format": "pt"})
    settings = json.dumps(files.settings(adapter) | renamed.settings, indent=2, sort_keys=True)
    (adapter / files.CONFIG).write_text(settings, encoding="utf-8")
    return renamed.beginnings


@dataclass(frozen=True, kw_only=True)
class _ForWhole:
    """An adapter with the names of the whole model."""

    state: dict[str, Tensor]
    settings: dict[str, Any]
    """Changes in its config."""
    beginnings: tuple[str, str]


def _renamed(adapter: Path, base: Path, parts: Parts) -> _ForWhole | None:
    state = files.tensors(adapter)
    trained = _attached(bare_model(base), adapter, {})
    whole, part = _beginnings(_bare_whole(base, parts), trained.get_base_model())
    layers = [
        name.removeprefix(PREFIX) for name, module in trained.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    for named in (None, layers):
        settings = _settings(files.settings(adapter), named, whole, part)
        try:
            fit = fitting.fitted(_attached(_bare_whole(base, parts), adapter, settings), state, where=adapter)
            fitting.fitted(_attached(bare_model(base), adapter, settings), fit.state, where=adapter)
        except (FineTuneError, *fitting.FAILURES):
            continue
        if fit.renamed and all(new == _moved(name, part, whole) for name, new in fit.renamed.items()):
            return _ForWhole(state=fit.state, settings=settings, beginnings=(whole, part))
    return None


def _moved(name: str, old: str, new: str) -> str:
    """A weight's name with another beginning after PEFT's own part."""
    return f"{PREFIX}{new}{name.removeprefix(f'{PREFIX}{old}')}"


def _beginnings(whole: Any, part: Any) -> tuple[str, str]:
    """What precedes the name of the same layer, the embeddings, in each of the models."""
    first, second = (_name_of_embeddings(model).split(".") for model in (whole, part))
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return "".join(f"{name}." for name in first), "".join(f"{name}." for name in second)


def _name_of_embeddings(model: Any) -> str:
    layer = model.get_input_embeddings()
    names: dict[str, Any] = dict(model.named_modules())
    return next(name for name, module in names.items() if module is layer)


def _settings(settings: Mapping[str, Any], layers: Sequence[str] | None, whole: str, part: str) -> dict[str, Any]:
    """The changes that make an adapter's config valid for both models: full names get both beginnings.

    `layers`, by their names in the text part, replace patterns that would match more layers in the whole model.
    """
    either = f"(?:{re.escape(whole)}|{re.escape(part)})"
    changed: dict[str, Any] = {}
    for name in ANCHORED:
        patterns: Mapping[str, Any] = settings.get(name) or {}
        if part and any(key.startswith(part) for key in patterns):
            changed[name] = {re.sub(f"^{re.escape(part)}", lambda _: either, key): patterns[key] for key in patterns}
    if layers is not None:
        places = dict.fromkeys(re.escape(name.removeprefix(part)) for name in layers if not name.endswith(TOKENS))
        changed["target_modules"] = f"{either}(?:{'|'.join(places)})"
        changed |= {name: None for name in OF_A_LIST if settings.get(name) is not None}
    return changed


def _attached(model: Any, adapter: Path, settings: Mapping[str, Any]) -> Any:
    config = files.config(adapter)  # a new one each time: PEFT writes into it
    config.inference_mode = True
    for name, value in settings.items():
        setattr(config, name, value)
    return PeftModel(model, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)


def _bare_whole(base: Path, parts: Parts) -> Any:
    with torch.device(META):
        return _class(parts)._from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=False), dtype=torch.float32
        )


def _class(parts: Parts) -> Any:
    return getattr(transformers, parts.whole)


def on_whole(config: Config, base: BaseModel, adapter: Path) -> Any:
    """The adapter on the whole model, loaded with transformers and PEFT alone, except for `keep_exact`."""
    parts = of(base.path)
    assert parts is not None
    dtype = hardware.held_dtype(config)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": hardware.device()}}
    if quantiser := quantization(config, dtype):
        options["quantization_config"] = quantiser
    with quiet_peft(), quiet_transformers():
        model = _class(parts).from_pretrained(base.path, **options)
        keep_exact(model)
        return PeftModel.from_pretrained(model, adapter).eval()
