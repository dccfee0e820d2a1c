"""What makes the passes of a model take less, for a while: fused LoRA and MLPs, and activations computed again.

Or its layers compiled by torch, which does such things in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_ft.engine.models.compiled import Compiled
from mlflow_ft.engine.models.fused_lora import FusedLora
from mlflow_ft.engine.models.fused_mlp import FusedMlp
from mlflow_ft.engine.models.recomputing import Recomputing


@contextmanager
def passes(model: Any, *, fused: bool, recomputing: bool, compiled: bool = False) -> Iterator[None]:
    """Let a model's passes take less inside; afterwards it is as it was.

    Args:
        model: as it is trained, with its adapter.
        fused: whether LoRA's part of layers, and gated MLPs, are computed in one step.
        recomputing: whether what costs little is computed again in the backward pass; without it MLPs stay as they are.
        compiled: whether torch compiles the layers; not together with the others.
    """
    parts: list[FusedLora | FusedMlp | Recomputing | Compiled] = [FusedLora(model)] if fused else []
    parts += [FusedMlp(model)] if fused and recomputing else []
    parts += [Recomputing(model)] if recomputing else []
    parts += [Compiled(model)] if compiled else []
    for part in parts:
        part.on()
    try:
        yield
    finally:
        for part in parts:
            part.off()
