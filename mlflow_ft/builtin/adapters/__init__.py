"""The built-in adapters: none, LoRA and its closest variants; the others are in this package's modules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter, ConfigError, hookimpl
from mlflow_ft.builtin.adapters import factored, learned_prompts, other, shared, tuners
from mlflow_ft.builtin.adapters.tuners import NAMED, Tuner

if TYPE_CHECKING:
    from mlflow_ft import Config, Job, Model

LORA = NAMED | {
    "target_parameters": "",
    "r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "fused": "",
    "init_lora_weights": "init_lora_weights",
    "trainable_token_indices": "trainable_token_indices",
}
RANGES = {
    "adapter.r": "4 to 64",
    "adapter.lora_alpha": "r to 2r",
    "adapter.lora_dropout": "0 to 0.1",
    "training.learning_rate": "5e-5 to 5e-4",
}
INITIALISATIONS = ("pissa", "olora", "gaussian", "eva", "corda", "loftq", "orthogonal", "mica", "lora_ga")
NOT_ADALORA = ("use_rslora", "init_lora_weights", "r", "target_parameters", "fused")
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
OF_THE_WEIGHTS = (*CHANGE_THE_BASE, "orthogonal", "mica")


def no_adapter(job: Job, model: Model) -> None:
    """Every weight trains."""


def fit_lora(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LoraConfig` that depend on the model; `all-linear` is the linear layers, without fused experts."""
    from mlflow_ft.engine.models import experts, linear

    fields = fit_low_rank(job, model, values)
    if job.config.adapter.target_modules == tuners.ALL_LINEAR and (names := linear.for_lora(model.module)):
        fields["target_modules"] = names
    parameters = job.config.adapter.target_parameters
    if parameters == experts.ALL and not experts.fused(model.module):
        raise ConfigError(
            f"adapter.target_parameters {experts.ALL}: this model has no fused experts",
            hint="leave it out, or name the weights as a list",
        )
    if parameters == experts.ALL:
        layers = job.config.adapter.layers_to_transform
        fields["target_parameters"] = experts.parameters(model.module, layers=layers)
    elif parameters:
        fields["target_parameters"] = [parameters] if isinstance(parameters, str) else parameters
    return fields


def fit_low_rank(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that keep ties, train new tokens, and configure the initialisation."""
    from mlflow_ft.engine.tokens import tokenizers, vocabulary

    fields = initialisation(values.get("init_lora_weights"), values)
    saved = set(values.get("modules_to_save") or ())
    layers = list(vocabulary.token_layers(model.module, []))
    targets = values.get("target_modules")
    touched = saved | set(targets if isinstance(targets, list) else ())
    if vocabulary.tied(model.module) and touched & {*layers, "lm_head"}:
        fields["ensure_weight_tying"] = True
    new = list(tokenizers.load(job.config, model.base).new_tokens) if job.config.model.add_tokens else []
    chosen = list(values.get("trainable_token_indices") or ())
    indices = {name: ([*chosen, *new] if name == layers[0] else new) for name in layers if name not in saved}
    indices = {name: ids for name, ids in indices.items() if ids}
    return fields | ({"trainable_token_indices": indices} if indices else {})


def initialisation(name: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LoraConfig` for an initialisation; its own config comes from `adapter.options` where set."""
    from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

    if name == "loftq":  # done by the engine, on the quantised base as it is
        return {"init_lora_weights": True}
    kinds = {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}
    return {f"{name}_config": kinds[name]()} if name in kinds and not values.get(f"{name}_config") else {}


def refuse_lora(config: Config) -> str | None:
    """Why an initialisation is unknown, or does not work with the base's quantisation or DoRA."""
    init, quantize = config.adapter.init_lora_weights, config.model.quantize
    dora = config.adapter.use_dora or config.adapter.kind == "dora"
    if dora and quantize == "int8":
        return "PEFT cannot read the weights of an int8 base, whose norm DoRA needs; use --model.quantize nf4"
    if config.adapter.target_parameters and (reason := refuse_parameters(config, dora=dora)):
        return f"adapter.target_parameters: {reason}"
    if init is None:
        return None
    if init not in INITIALISATIONS and not re.fullmatch(r"pissa_niter_\d+", init):
        near = difflib.get_close_matches(init, INITIALISATIONS, n=1)
        return f"adapter.init_lora_weights {init!r} is not one of {', '.join(INITIALISATIONS)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if init == "loftq" and quantize != "nf4":
        return "loftq corrects the rounding errors of a 4-bit base; add --model.quantize nf4, or leave it out"
    if init.startswith(OF_THE_WEIGHTS) and quantize != "none":
        return f"{init} is computed from the weights, which {quantize} has rounded; use loftq or eva, or leave it out"
    if init.startswith((*CHANGE_THE_BASE, "loftq")) and dora:
        return f"{init} starts from weights that it changes, and DoRA keeps their norm; leave one of them out"
    return None


def refuse_parameters(config: Config, *, dora: bool) -> str | None:
    """What PEFT cannot do on weights that are not in a linear layer, such as fused experts."""
    settings = config.adapter
    if dora:
        return "PEFT has no DoRA for such weights; use lora, or leave it out"
    if settings.layers_to_transform is not None and settings.target_parameters != "experts":
        return "adapter.layers_to_transform has no effect on named weights; write the layer into their names"
    if settings.lora_dropout:
        return "PEFT has no dropout for such weights; use --adapter.lora_dropout 0, or leave it out"
    if settings.init_lora_weights not in (None, "gaussian"):
        return f"{settings.init_lora_weights} is computed from the weights of layers; leave out one of the two"
    return None


def fit_adalora(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """Start with half as many ranks again; the trainer sets the number of steps once it is known."""
    rank = int(values["target_r"])
    return fit_low_rank(job, model, values) | {"init_r": rank + (rank + 1) // 2, "total_step": 10**9}


RECORDS: tuple[Adapter, ...] = (
    Adapter(
        name="none",
        summary="no adapter: every weight trains",
        configure=no_adapter,
        refuses=tuners.refuse_none,
        use_for="the most capacity: much data, a new language, a new domain",
        memory="the most: weights, gradients and AdamW in float32 are 16 bytes per weight",
        ranges={"training.learning_rate": "5e-6 to 5e-5"},
    ),
    tuners.record(
        "lora",
        "low-rank updates of linear layers, scaled by lora_alpha / r",
        Tuner(
            config="LoraConfig",
            settings=LORA | {"use_dora": "use_dora"},
            fit=fit_lora,
            new_tokens=True,
            refuses=refuse_lora,
        ),
        paper="https://arxiv.org/abs/2106.09685",
        use_for="nearly everything; start here",
        memory="the base, and 16 bytes for each of the few weights that train",
        ranges=RANGES,
    ),
    tuners.record(
        "dora",
        "LoRA on the direction of the weights, with their magnitude trained separately",
        Tuner(
            config="LoraConfig",
            settings=LORA,
            fixed={"use_dora": True},
            fit=fit_lora,
            quantised=("nf4",),
            new_tokens=True,
            refuses=refuse_lora,
        ),
        paper="https://arxiv.org/abs/2402.09353",
        use_for="low ranks, where LoRA falls short of full fine-tuning",
        memory="as LoRA, with about twice its activations and time",
        ranges=RANGES | {"adapter.r": "4 to 32"},
    ),
    tuners.record(
        "adalora",
        "LoRA that removes ranks from the layers that need them least; adapter.r is the final average",
        Tuner(
            config="AdaLoraConfig",
            settings={name: ours for name, ours in LORA.items() if name not in NOT_ADALORA} | {"r": "target_r"},
            fit=fit_adalora,
            new_tokens=True,
        ),
        paper="https://arxiv.org/abs/2303.10512",
        use_for="a rank budget that is allotted to layers in training; needs a few hundred steps",
        memory="as LoRA of 1.5 times the rank",
        ranges=RANGES | {"adapter.r": "4 to 16", "training.learning_rate": "5e-4 to 3e-3"},
    ),
)
"""None, LoRA and its closest variants."""


@hookimpl
def register_adapters() -> list[Adapter]:
    return [
        *RECORDS,
        *factored.RECORDS,
        *shared.RECORDS,
        *other.records(),
        *learned_prompts.RECORDS,
    ]
