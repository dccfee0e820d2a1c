"""Another forward pass for a module of a model, for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from mlflow_ft.engine.loss import causal_model


def layers_below_head(model: nn.Module) -> Any | None:
    """The part of a model that gives the last hidden states; None if it has none of its own."""
    causal = causal_model(model)
    return causal.base_model if causal.base_model is not causal else getattr(causal, "model", None)


def replace_forward(module: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Let `module` run `forward`, with its own signature; returns what undoes it.

    What was replaced last must be undone first.
    """
    before = vars(module).get("forward")

    @functools.wraps(module.forward)
    def replaced(*positional: Any, **inputs: Any) -> Any:
        return forward(*positional, **inputs)

    module.forward = replaced

    def undo() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    return undo
