"""A base that reads pictures or sound beside text: which part of it is trained, and an adapter that fits the whole.

transformers loads some such models (Qwen3.5, Llama 4) as their text part alone, whose layers have other names than in
the whole model that people use and that its files hold:

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
"""By the beginning of the name of a part's config, what the part reads."""
PREFIX = "base_model.model."
ANCHORED = ("rank_pattern", "alpha_pattern")
"""Settings whose keys may be whole names of layers."""

OF_A_LIST = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings that go with a list of layers, not with a pattern."""
TOKENS = ".token_adapter"
"""The layer that PEFT itself puts inside one whose tokens are trained."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model with more parts than text is loaded as."""

    whole: str
    """The class of the whole model, as its config.json has it."""
    loaded: str
    """The class that is trained."""
    reads: tuple[str, ...]
    """What the other parts read."""

    @property
    def text_alone(self) -> bool:
        """Whether the other parts are left out."""
        return self.whole != self.loaded

    def said(self, name: str, *, adapter: bool) -> str:
        """What becomes of the other parts of the model called `name` when it is trained, in a sentence or two."""
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
        """What the merged model is, where `text_alone`, in a sentence."""
        others = " and ".join(self.reads)
        return f"{name} also reads {others}: only its text part ({self.loaded}) is merged, which does not read {others}"


def of(base: Path, *, task: Task = "generate") -> Parts | None:
    """The parts of the model in a folder; None where it reads text alone, or is made of code that came with it."""
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except fitting.FAILURES:
        return None  # whoever loads the model reports what is wrong with it
    names = [name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None]
    kinds = {READS[start]: None for name in names for start in READS if name.startswith(start)}
    auto: Any = AutoModelForSequenceClassification if task == "score" else AutoModelForCausalLM
    if not kinds or type(config) not in auto._model_mapping:
        return None
    found = auto._model_mapping[type(config)]
    loaded = (found if isinstance(found, tuple) else (found,))[0]
    same = loaded.config_class is type(config)
    whole = loaded.__name__ if same else next(iter(config.architectures or ()), "")
    return Parts(whole=whole, loaded=loaded.__name__, reads=tuple(kinds))


def rename_for_whole(adapter: Path, base: Path) -> tuple[str, str] | None:
    """Give the weights of an adapter of a text part the names of the whole model, in its folder.

    PEFT then loads it on the whole model; `fitting.put_on` on the text part, too.

    Returns:
        The beginnings of the names in the whole model and in the text part; None where nothing was renamed: the model
        is loaded whole, or such an adapter cannot have the names of the whole.
    """
    parts = of(base)
    if parts is None or not parts.text_alone:
        return None
    try:
        with quiet_peft(), quiet_transformers():
            found = _renamed(adapter, base, parts)
    except (UnsuitedError, FineTuneError, *fitting.FAILURES):
        return None
    if found is None:
        return None
    save_file(found.state, adapter / files.WEIGHTS, metadata={"format": "pt"})
    settings = json.dumps(files.settings(adapter) | found.settings, indent=2, sort_keys=True)
    (adapter / files.CONFIG).write_text(settings, encoding="utf-8")
    return found.beginnings


@dataclass(frozen=True, kw_only=True)
class _ForWhole:
    """An adapter with the names of the whole model."""

    state: dict[str, Tensor]
    settings: dict[str, Any]
    """What changes in its config."""
    beginnings: tuple[str, str]


def _renamed(adapter: Path, base: Path, parts: Parts) -> _ForWhole | None:
    state = files.tensors(adapter)
    trained = _attached(bare_model(base), adapter, {})
    whole, part = _beginnings(_bare_whole(base, parts), trained.get_base_model())
    layers = [name.removeprefix(PREFIX) for name, one in trained.named_modules() if isinstance(one, BaseTunerLayer)]
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
    """What stands before the name of one and the same layer, the embeddings, in both models."""
    one, two = (_name_of_embeddings(model).split(".") for model in (whole, part))
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    return "".join(f"{name}." for name in one), "".join(f"{name}." for name in two)


def _name_of_embeddings(model: Any) -> str:
    layer = model.get_input_embeddings()
    names: dict[str, Any] = dict(model.named_modules())
    return next(name for name, module in names.items() if module is layer)


def _settings(settings: Mapping[str, Any], layers: Sequence[str] | None, whole: str, part: str) -> dict[str, Any]:
    """What changes in an adapter's config so that it holds in both models: whole names get both beginnings.

    With `layers`, by their names in the text part, it names them in place of patterns that hold for more in the whole.
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
    """The adapter on the whole model, as anybody puts it there with transformers and PEFT alone; see `keep_exact`."""
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
