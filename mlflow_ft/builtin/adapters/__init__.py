"""The adapters that ship inside: none, LoRA and its nearest kin; the others are in the modules beside this one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter, hookimpl
from mlflow_ft.builtin.adapters import factored, learned_prompts, other, shared, tuners
from mlflow_ft.builtin.adapters.tuners import NAMED, Tuner
from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.values import Job, Model

LORA = NAMED | {
    "target_parameters": "",
    "r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "init_lora_weights": "init_lora_weights",
    "trainable_token_indices": "trainable_token_indices",
}
RANGES = {
    "adapter.r": "4 to 64",
    "adapter.lora_alpha": "r to 2r",
    "adapter.lora_dropout": "0 to 0.1",
    "training.learning_rate": "5e-5 to 5e-4",
}
BEGINNINGS = ("pissa", "olora", "gaussian", "eva", "corda", "loftq", "orthogonal", "mica", "lora_ga")
NOT_ADALORA = ("use_rslora", "init_lora_weights", "r", "target_parameters")
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
OF_THE_WEIGHTS = (*CHANGE_THE_BASE, "orthogonal", "mica")


def no_adapter(job: Job, model: Model) -> None:
    """Every weight trains."""


def fit_lora(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LoraConfig` that depend on the model; `all-linear` is the linear layers, without fused experts."""
    from mlflow_ft.engine.models import experts, linear

    found = fit_low_rank(job, model, values)
    if job.config.adapter.target_modules == tuners.ALL_LINEAR and (names := linear.for_lora(model.module)):
        found["target_modules"] = names
    asked = job.config.adapter.target_parameters
    if asked == experts.ALL and not experts.fused(model.module):
        raise ConfigError(
            f"adapter.target_parameters {experts.ALL}: this model has no fused experts",
            hint="leave it out, or name the weights as a list",
        )
    if asked == experts.ALL:
        layers = job.config.adapter.layers_to_transform
        found["target_parameters"] = experts.parameters(model.module, layers=layers)
    elif asked:
        found["target_parameters"] = [asked] if isinstance(asked, str) else asked
    return found


def fit_low_rank(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """Ties are kept, new tokens train, a beginning has its own config."""
    from mlflow_ft.engine.tokens import tokenizers, vocabulary

    found = beginning(values.get("init_lora_weights"), values)
    saved = set(values.get("modules_to_save") or ())
    layers = list(vocabulary.token_layers(model.module, []))
    targets = values.get("target_modules")
    touched = saved | set(targets if isinstance(targets, list) else ())
    if vocabulary.tied(model.module) and touched & {*layers, "lm_head"}:
        found["ensure_weight_tying"] = True
    new = list(tokenizers.load(job.config, model.base).new_tokens) if job.config.model.add_tokens else []
    asked = list(values.get("trainable_token_indices") or ())
    indices = {name: ([*asked, *new] if name == layers[0] else new) for name in layers if name not in saved}
    indices = {name: ids for name, ids in indices.items() if ids}
    return found | ({"trainable_token_indices": indices} if indices else {})


def beginning(asked: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LoraConfig` that a way to begin needs; its own config comes from `adapter.options` where given."""
    from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

    if asked == "loftq":  # the engine does it, on the quantised base as it is
        return {"init_lora_weights": True}
    kinds = {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}
    return {f"{asked}_config": kinds[asked]()} if asked in kinds and not values.get(f"{asked}_config") else {}


def refuse_lora(config: Config) -> str | None:
    """Ways to begin that there are not, or that do not go with how the base is held."""
    begin, quantize = config.adapter.init_lora_weights, config.model.quantize
    dora = config.adapter.use_dora or config.adapter.kind == "dora"
    if dora and quantize == "int8":
        return "PEFT cannot read the weights of an int8 base, whose length DoRA needs; take --model.quantize nf4"
    if config.adapter.target_parameters and (reason := refuse_parameters(config, dora=dora)):
        return f"adapter.target_parameters: {reason}"
    if begin is None:
        return None
    if begin not in BEGINNINGS and not re.fullmatch(r"pissa_niter_\d+", begin):
        near = difflib.get_close_matches(begin, BEGINNINGS, n=1)
        return f"adapter.init_lora_weights {begin!r} is none of {', '.join(BEGINNINGS)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if begin == "loftq" and quantize != "nf4":
        return "loftq corrects the errors of a base in 4 bits; add --model.quantize nf4, or leave it out"
    if begin.startswith(OF_THE_WEIGHTS) and quantize != "none":
        return f"{begin} is computed from the weights, which {quantize} has rounded; take loftq or eva, or leave it out"
    if begin.startswith((*CHANGE_THE_BASE, "loftq")) and dora:
        return (
            f"{begin} begins as a LoRA on weights that it changes, and DoRA keeps their length; leave one of them out"
        )
    return None


def refuse_parameters(config: Config, *, dora: bool) -> str | None:
    """What PEFT cannot do on weights that are not in a linear layer, such as fused experts."""
    settings = config.adapter
    if dora:
        return "PEFT has no DoRA for such weights; take lora, or leave it out"
    if settings.layers_to_transform is not None and settings.target_parameters != "experts":
        return "adapter.layers_to_transform has no effect on named weights; write the layer into their names"
    if settings.lora_dropout:
        return "PEFT has no dropout for such weights; take --adapter.lora_dropout 0, or leave it out"
    if settings.init_lora_weights not in (None, "gaussian"):
        return f"{settings.init_lora_weights} is computed from the weights of layers; leave one of the two out"
    return None


def fit_adalora(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """Half again as many ranks to begin with; how long the training is, the trainer tells when it knows it."""
    rank = int(values["target_r"])
    return fit_low_rank(job, model, values) | {"init_r": rank + (rank + 1) // 2, "total_step": 10**9}


RECORDS: tuple[Adapter, ...] = (
    Adapter(
        name="none",
        summary="no adapter: every weight trains",
        configure=no_adapter,
        refuses=tuners.refuse_none,
        use_for="the most capacity: much data, a new language, a new domain",
        memory="the most: weights, gradients and AdamW in float32 are 16 bytes a weight",
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
        use_for="nearly everything; begin here",
        memory="the base, and 16 bytes for each of the few weights that train",
        ranges=RANGES,
    ),
    tuners.record(
        "dora",
        "LoRA on the direction of the weights, with their length trained apart",
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
        use_for="low ranks, where LoRA stays behind full fine-tuning",
        memory="as LoRA, with about twice its activations and time",
        ranges=RANGES | {"adapter.r": "4 to 32"},
    ),
    tuners.record(
        "adalora",
        "LoRA that takes ranks away from the layers that need them least; adapter.r is what is left on average",
        Tuner(
            config="AdaLoraConfig",
            settings={name: ours for name, ours in LORA.items() if name not in NOT_ADALORA} | {"r": "target_r"},
            fit=fit_adalora,
            new_tokens=True,
        ),
        paper="https://arxiv.org/abs/2303.10512",
        use_for="a budget of ranks that finds its layers by itself; needs a few hundred steps",
        memory="as LoRA of 1.5 times the rank",
        ranges=RANGES | {"adapter.r": "4 to 16", "training.learning_rate": "5e-4 to 3e-3"},
    ),
)
"""None, LoRA and its nearest kin."""


@hookimpl
def register_adapters() -> list[Adapter]:
    return [
        *RECORDS,
        *factored.RECORDS,
        *shared.RECORDS,
        *other.records(),
        *learned_prompts.RECORDS,
    ]
