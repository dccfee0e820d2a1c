"""Adapters that answer, but cannot become one with their base: found before they are trained, or merged in part."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mlflow_ft.errors import ModelError, brief

ALONE = "serve it on its base instead (mlflow-ft serve)"
UNKNOWN = "it may belong to another base (--base), or be a kind that PEFT cannot merge"
REPLICATED = "its layer_replication repeats layers that share their weights, so they cannot be merged separately"


def check_config(settings: Mapping[str, Any], *, where: Path) -> None:
    """Raise ModelError where an adapter's config alone says that it cannot be merged; `where` is its folder."""
    if reason := of_config(settings):
        raise ModelError(f"the adapter in {where} cannot be merged: {reason}", hint=ALONE)


def check(wrapped: Any, *, where: Path) -> None:
    """Raise ModelError where the adapter on this base cannot be merged into it."""
    if reason := of_model(wrapped):
        raise ModelError(f"the adapter in {where} cannot be merged: {reason}", hint=ALONE)


def of_config(settings: Mapping[str, Any]) -> str:
    """Why an adapter of this config cannot be merged into any base; empty where nothing is known against it."""
    return REPLICATED if settings.get("layer_replication") else ""


def of_model(wrapped: Any) -> str:
    """Why the adapter on this model cannot be merged; empty where PEFT merges a layer of every kind in it.

    One layer of each kind, the smallest, is merged in a copy. Quantised ones, and those on the meta device, are not.
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
    """Of each kind of layer that the adapter has put in, the smallest, by its name."""
    found: dict[object, tuple[int, str, Any]] = {}
    for name, layer in wrapped.named_modules():
        weights = list(layer.parameters())
        if not isinstance(layer, BaseTunerLayer):
            continue
        if any(weight.is_meta or not weight.is_floating_point() for weight in weights):
            continue
        kind = (type(layer), type(layer.get_base_layer()))
        size = sum(weight.numel() for weight in weights)
        if kind not in found or size < found[kind][0]:
            found[kind] = (size, name, layer)
    for _, name, layer in found.values():
        yield name, layer
