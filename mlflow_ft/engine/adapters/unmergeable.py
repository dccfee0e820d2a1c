"""Find adapters that work but cannot be merged into their base, before they are trained or partly merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftType, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mlflow_ft.errors import ModelError, brief

ALONE = "serve it on its base instead (mlflow-ft serve)"
UNKNOWN = "it may belong to another base (--base), or be a kind that PEFT cannot merge"
REPLICATED = "its layer_replication repeats layers that share their weights, so they cannot be merged separately"


def check_config(settings: Mapping[str, Any], *, where: Path) -> None:
    """Raise ModelError if an adapter's config already rules out merging; `where` is its folder."""
    if reason := _of_kind(str(settings.get("peft_type"))) or of_config(settings):
        raise ModelError(f"the adapter in {where} cannot be merged: {reason}", hint=ALONE)


def check(wrapped: Any, *, where: Path) -> None:
    """Raise ModelError if the adapter on this base cannot be merged into it."""
    if reason := of_model(wrapped):
        raise ModelError(f"the adapter in {where} cannot be merged: {reason}", hint=ALONE)


def of_config(settings: Mapping[str, Any]) -> str:
    """Why an adapter with this config cannot be merged into any base; "" if no reason is known."""
    return REPLICATED if settings.get("layer_replication") else ""


def _of_kind(kind: str) -> str:
    """Why adapters of this type of PEFT have nothing to merge; "" if they change weights."""
    learns = issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)], PromptLearningConfig)
    return f"{kind} adds to the input and changes no weights" if learns or kind == PeftType.ADAPTION_PROMPT else ""


def of_model(wrapped: Any) -> str:
    """Why the adapter on this model cannot be merged; "" if PEFT can merge a layer of every kind in it.

    A copy of the smallest layer of each kind is merged, except quantised layers and those on the meta device.
    """
    for config in wrapped.peft_config.values():
        if reason := of_config(config.to_dict()):
            return reason
    if names := [name for name, layer in wrapped.named_modules() if _adds_a_bias(layer)]:
        return f"it trains biases (lora_bias) of {len(names)} layers that have none in this base, such as {names[0]}"
    for name, layer in _smallest(wrapped):
        try:
            copy.deepcopy(layer).merge(safe_merge=True)
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
            return f"PEFT cannot merge {name}: {brief(error)}"
    return ""


def _adds_a_bias(layer: nn.Module) -> bool:
    if not isinstance(layer, LoraLayer) or not any(layer.lora_bias.values()):
        return False
    return getattr(layer.get_base_layer(), "bias", None) is None


def _smallest(wrapped: Any) -> Iterator[tuple[str, Any]]:
    """The smallest of each kind of the adapter's layers, with its name."""
    smallest: dict[object, tuple[int, str, Any]] = {}
    for name, layer in wrapped.named_modules():
        weights = list(layer.parameters())
        if not isinstance(layer, BaseTunerLayer):
            continue
        if any(weight.is_meta or not weight.is_floating_point() for weight in weights):
            continue
        kind = (type(layer), type(layer.get_base_layer()))
        size = sum(weight.numel() for weight in weights)
        if kind not in smallest or size < smallest[kind][0]:
            smallest[kind] = (size, name, layer)
    for _, name, layer in smallest.values():
        yield name, layer
