"""How a value of another tool becomes ours, by the name that a table gives: `how: modules`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_ft.operations.importing.draft import names, number, truth

ATTENTION = {
    "auto": None,
    "disabled": "eager",
    "sdp": "sdpa",
    "flash": "flash_attention_2",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "flex": "flex_attention",
}
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adam": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
}
SCHEDULERS = {"one_cycle": None, "rex": None, "none": "constant"}


class ImpossibleError(ValueError):
    """Why a value has no counterpart here."""


def text_of(value: Any) -> str:
    """A value of `objective.options`, which are read as YAML: lists and mappings on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def modules(value: Any) -> Any:
    """Modules to adapt: `all`, `all-linear`, a list, or a regular expression."""
    if value in ("all", "all-linear", ["all"], ["all-linear"]):
        return "all-linear"
    if isinstance(value, str) and set(value) & set("()*\\^$|"):
        return value
    return names(value)


def optimizer(value: Any) -> str:
    """The name of an optimizer in transformers."""
    name = str(value).lower()
    if name.startswith(OTHER_OPTIMIZERS):
        raise ImpossibleError(f"the optimizer {name} needs a package of its own; nearest: adamw_torch_fused")
    return OPTIMIZERS.get(name, name)


OTHER_OPTIMIZERS = (
    *("galore", "apollo", "lomo", "adalomo", "grokadamw", "stable_adamw", "schedule_free", "ao_", "optimi_", "adopt"),
    *("came", "muon", "dion", "adamc", "sinkgd", "polora", "flash_", "q_galore", "sinkgd", "anyprecision"),
    *("adamw_torch_xla", "adamw_torch_npu", "adamw_apex", "adamw_anyprecision", "lion_pytorch", "shampoo", "soap"),
    *("ao_adamw", "adam_mini", "dadaptation", "prodigy", "ranger"),
)


def scheduler(value: Any) -> str:
    """The name of a schedule in transformers."""
    name = str(value).lower()
    if name.endswith(".warmup_stable_decay"):
        name = name.rpartition(".")[2]
    if SCHEDULERS.get(name, name) is None:
        raise ImpossibleError(f"there is no schedule {name}; nearest: cosine")
    return SCHEDULERS.get(name, name) or name


def attention(value: Any) -> str | None:
    """The implementation of attention, as transformers names it."""
    name = str(value).lower()
    return ATTENTION.get(name, name)


def dtype(value: Any) -> str:
    """The type to compute in."""
    name = str(value).lower().removeprefix("torch.")
    known = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "none": "auto"}
    return known.get(name, name)


def whole(value: Any) -> Any:
    """A number of steps: a share or 0 becomes 1."""
    value = number(value)
    return max(1, round(value)) if isinstance(value, int | float) else value


def initialisation(value: Any) -> str | None:
    """`init_lora_weights`: PEFT's own where it says true."""
    if value in (True, "true", "default", "lora"):
        return None
    if not truth(value):
        raise ImpossibleError("an adapter that begins at random changes the model before the first step")
    return str(value)


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "": number,
    "attention": attention,
    "dtype": dtype,
    "initialisation": initialisation,
    "minutes": lambda seconds: max(0.1, number(seconds) / 60),
    "modules": modules,
    "names": names,
    "sampler": lambda value: "vllm" if truth(value) else "transformers",
    "not": lambda value: not truth(value),
    "one": lambda value: str(value),
    "optimizer": optimizer,
    "scheduler": scheduler,
    "text": text_of,
    "truth": truth,
    "whole": whole,
}
"""By name."""
