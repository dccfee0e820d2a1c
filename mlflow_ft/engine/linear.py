"""The linear layers of a model: their names and sizes, from which some adapters take their own shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn


def layers(module: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer but the output layer, quantised or not, with its full name."""
    outside = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer is not outside:
            yield name, layer


def names(module: Any) -> list[str]:
    """What the linear layers are called, without the place: `["down_proj", "gate_proj", ...]`."""
    return sorted({name.rpartition(".")[2] for name, _ in layers(module)})


def norms(module: Any) -> list[str]:
    """What the normalising layers are called, without the place."""
    found = {name.rpartition(".")[2] for name, layer in module.named_modules() if type(layer).__name__.endswith("Norm")}
    return sorted(found)


def smallest(module: Any) -> int:
    """Number of weights of the smallest linear layer."""
    return min(int(layer.in_features * layer.out_features) for _, layer in layers(module))


def common_side(module: Any, most: int) -> int:
    """The largest number up to `most` that divides the sides of every linear layer."""
    whole = math.gcd(*(side for _, layer in layers(module) for side in (layer.in_features, layer.out_features)))
    return max(part for part in range(1, min(whole, most) + 1) if whole % part == 0)
