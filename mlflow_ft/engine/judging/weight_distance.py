"""How far apart the tensors of two weight files are."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open


def largest_difference(one: Path, other: Path) -> tuple[str, float] | None:
    """The tensor of two safetensors files with the largest absolute difference, and that difference.

    Computed in float32, one tensor at a time; a NaN is infinitely far. None if names or shapes differ.
    """
    largest = ("", 0.0)
    with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
        if set(first.keys()) != set(second.keys()):
            return None
        for name in sorted(first.keys()):
            before, after = first.get_tensor(name), second.get_tensor(name)
            if before.shape != after.shape:
                return None
            difference = _difference(before, after)
            if difference > largest[1]:
                largest = (name, difference)
    return largest


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    if not before.numel():
        return 0.0
    distance = float((before.to(torch.float32) - after.to(torch.float32)).abs().max())
    return math.inf if math.isnan(distance) else distance
