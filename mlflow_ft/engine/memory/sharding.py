"""What each process holds, if several share a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow_ft.engine.memory.values import Setting

SHARDED: Mapping[str, tuple[str, ...]] = {
    "deepspeed-zero2": ("gradients", "optimizer"),
    "deepspeed-zero3": ("weights", "adapter", "gradients", "optimizer", "reference"),
    "fsdp": ("weights", "adapter", "gradients", "optimizer", "reference"),
}
"""What a strategy spreads evenly over its processes; the others hold everything in each."""
GATHERED = 2
"""Layers that are gathered at the same time: the next one is fetched while a layer computes."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that a process holds during training."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    reference: int
    largest_layer: int
    outside: int
    """Weights outside the repeated layers."""
    communication: int = 0
    """Buffers in which processes exchange weights and gradients."""


def spread(held: Held, setting: Setting) -> Held:
    """What one of `setting.processes` holds.

    DistributedDataParallel has a second copy of the gradients, its buckets. ZeRO-2 and mixed precision: weights stay
    whole. FSDP and ZeRO-3 gather a layer to compute with it, and the next one meanwhile; FSDP keeps what is outside the
    repeated layers (embeddings, output layer) during a pass.
    """
    if setting.processes == 1 or setting.strategy == "local":
        return held
    if setting.strategy == "ddp":
        return replace(held, communication=held.gradients)
    parts = {name: -(-getattr(held, name) // setting.processes) for name in SHARDED[setting.strategy]}
    gathers = "weights" in SHARDED[setting.strategy]
    communication = GATHERED * held.largest_layer + held.outside if gathers else held.gradients // setting.processes
    return replace(held, **parts, communication=communication)
