"""Another forward pass for the layers of a model, for a while."""

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


class Wrapping:
    """Another forward pass for the layers below a model's head, between `on` and `off`.

    Of several on one model, the last one that was put on must be taken off first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = layers_below_head(model)
        self._forward: Callable[..., Any] | None = None
        """What is wrapped; None while it is off."""
        self._before: Callable[..., Any] | None = None

    def on(self) -> None:
        """Begin."""
        if self._layers is None or self._forward:
            return
        self._before, self._forward = vars(self._layers).get("forward"), self._layers.forward

        @functools.wraps(self._layers.forward)
        def forward(*positional: Any, **inputs: Any) -> Any:
            return self._run(*positional, **inputs)

        self._layers.forward = forward

    def off(self) -> None:
        """End; the model is as it was."""
        if self._layers is None or not self._forward:
            return
        if self._before:
            self._layers.forward = self._before
        else:
            del self._layers.forward
        self._forward = None

    def _run(self, *positional: Any, **inputs: Any) -> Any:
        """The forward pass, which calls `_forward`."""
        raise NotImplementedError
