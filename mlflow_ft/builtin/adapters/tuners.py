"""Turns the settings of `adapter` into a PEFT config: shared by the records of all adapters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter, ConfigError

if TYPE_CHECKING:
    from mlflow_ft import Config, Job, Model

ALL_LINEAR = "all-linear"
TARGETS = {"target_modules": "target_modules", "modules_to_save": "modules_to_save"}
NAMED = TARGETS | {"layers_to_transform": "layers_to_transform"}
RANK = NAMED | {"r": "r"}
"""Settings that many kinds use, and the PEFT fields that they fill."""
FLOAT: tuple[str, ...] = ()
"""Works on no quantised base."""
LIKE_LORA, TINY = "as LoRA of that rank", "far less than LoRA: the base is nearly all of it"
RATE = "training.learning_rate"
OF_PEFT = ("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
"""Fields of every PEFT config that users cannot set."""


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """How a kind of adapter uses the settings: the PEFT config class, and which field each setting fills."""

    config: str
    """Name of the class in `peft`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """From names in `AdapterSection` to fields of the class; "" where `fit` or the engine reads the setting."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    all_linear: bool = True
    """Whether all linear layers get the adapter when none are named; else `fit` or PEFT chooses them."""
    fit: Callable[[Job, Model, Mapping[str, Any]], Mapping[str, Any]] = lambda job, model, values: {}
    """Further fields, from the model and the values so far, which they override; `adapter.options` override both."""
    quantised: Collection[str] = ("nf4", "int8")
    """The quantisations of the base with which it was tested and trains correctly."""
    new_tokens: bool = False
    """Whether it can train the embeddings of `model.add_tokens`."""
    refuses: Callable[[Config], str | None] = lambda config: None


def record(name: str, summary: str, tuner: Tuner, **more: Any) -> Adapter:
    """The record of a PEFT adapter."""
    return Adapter(
        name=name, summary=summary, configure=partial(configure, tuner), refuses=partial(refuse, tuner), **more
    )


def configure(tuner: Tuner, job: Job, model: Model) -> Any:
    """The PEFT config for the settings.

    Raises:
        ConfigError: an unknown option, or values that PEFT refuses.
    """
    import peft

    from mlflow_ft.engine import options

    settings, kind = job.config.adapter, getattr(peft, tuner.config)
    values: dict[str, Any] = {ours: getattr(settings, name) for name, ours in tuner.settings.items() if ours}
    if "lora_alpha" in tuner.settings and settings.lora_alpha is None:
        values[tuner.settings["lora_alpha"]] = 2 * settings.r
    values = {name: value for name, value in values.items() if value is not None} | dict(tuner.fixed)
    values |= _layers(tuner, job, model.module, values)
    further = options.typed(settings.options, kind, section="adapter", ours=_ours(tuner))
    if "ensure_weight_tying" not in kind.__dataclass_fields__:
        keep_tied(job, model, values)
    values |= dict(tuner.fit(job, model, values | further)) | further
    return options.made(kind, {"task_type": "CAUSAL_LM"} | values, section="adapter")


def _ours(tuner: Tuner) -> list[str]:
    return [*filter(None, tuner.settings.values()), *tuner.fixed, *OF_PEFT]


def _layers(tuner: Tuner, job: Job, module: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The layers by name, where `all-linear` is not possible."""
    from mlflow_ft.engine.models import linear

    if values.get("target_modules") != ALL_LINEAR:
        return {}
    if not tuner.all_linear and not given(job.config, "target_modules"):
        return {"target_modules": None}
    if values.get("layers_to_transform") is None and tuner.all_linear and linear.all_plain(module):
        return {}
    return {"target_modules": linear.names(module)}  # PEFT takes layer numbers only with a list


def refuse(tuner: Tuner, config: Config) -> str | None:
    """Why the settings cannot work with this kind of adapter; None where they can."""
    unused = [name for name in type(config.adapter).model_fields if name not in (*tuner.settings, "kind", "options")]
    for name in unused:
        if given(config, name):
            used = ", ".join(f"adapter.{setting}" for setting in tuner.settings)
            return f"adapter.{name} is not used by it; it uses {used} and adapter.options"
    if config.model.quantize != "none" and config.model.quantize not in tuner.quantised:
        return f"PEFT cannot train it on a base in {config.model.quantize}; use lora, or --model.quantize none"
    if config.model.add_tokens and not tuner.new_tokens:
        return "it cannot train the embeddings of model.add_tokens; use lora or dora, or train all weights"
    if config.adapter.options:
        _check_options(tuner, config.adapter.options)
    return tuner.refuses(config)


def _check_options(tuner: Tuner, given_options: Mapping[str, str]) -> None:
    import peft

    from mlflow_ft.engine import options

    options.typed(given_options, getattr(peft, tuner.config), section="adapter", ours=_ours(tuner))


def refuse_none(config: Config) -> str | None:
    """Why adapter settings are refused where every weight trains."""
    for name in type(config.adapter).model_fields:
        if name != "kind" and given(config, name):
            return f"adapter.{name} is not used where every weight trains; choose an adapter (--adapter.kind lora)"
    return None


def given(config: Config, name: str) -> bool:
    """Whether the user set it; a method's own default does not count."""
    origin = config.origins.get(f"adapter.{name}", "method ")
    return not origin.startswith("method ")


def keep_tied(job: Job, model: Model, values: Mapping[str, Any]) -> None:
    """Raise ConfigError where the saved modules would untie the embedding and output layer of a tied model."""
    from mlflow_ft.engine.tokens import vocabulary

    untied = {*vocabulary.token_layers(model.module, []), "lm_head"} & set(values.get("modules_to_save") or ())
    if untied and vocabulary.tied(model.module):
        raise ConfigError(
            f"adapter.modules_to_save: {', '.join(sorted(untied))} is tied in this model, and "
            f"{job.config.adapter.kind} would train one of two copies",
            hint="use lora, which keeps them tied",
        )


def at_most(name: str, usual: int) -> Callable[[Job, Model, Mapping[str, Any]], Mapping[str, Any]]:
    """A number of weights that every layer must have: the usual number, or that of the smallest layer."""

    def fit(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
        from mlflow_ft.engine.models import linear

        return {name: min(usual, linear.smallest(model.module))}

    return fit


def divide(name: str, most: int) -> Callable[[Job, Model, Mapping[str, Any]], Mapping[str, Any]]:
    """A field that must divide the sides of every linear layer: its usual size, or the next smaller that does."""

    def fit(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
        from mlflow_ft.engine.models import linear

        return {name: linear.common_side(model.module, most)}

    return fit
