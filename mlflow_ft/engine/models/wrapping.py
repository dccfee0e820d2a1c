"""Other forward passes for the layers of a model, for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mlflow_ft.engine.loss import causal_model


def layers_below_head(model: nn.Module) -> Any | None:
    """The part of a model that gives the last hidden states; None if it has none of its own."""
    causal = causal_model(model)
    return causal.base_model if causal.base_model is not causal else getattr(causal, "model", None)


def replace_forward(layer: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Give a layer another forward pass; what is returned gives back its own (accelerate's hooks may be in it)."""
    before = vars(layer).get("forward")
    layer.forward = forward

    def back() -> None:
        if before:
            layer.forward = before
        else:
            del layer.forward

    return back


class Replacing:
    """Other forward passes for some layers of a model, between `on` and `off`.

    Args:
        layers: the layers.
        make: gives the other forward pass of a layer, from the layer and its own forward pass.
    """

    def __init__(
        self, layers: Sequence[nn.Module], make: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.layers = layers
        self._make = make
        self._back: list[Callable[[], None]] = []
        """Each gives a layer its own forward pass back; empty while it is off."""

    def on(self) -> None:
        """Begin."""
        if not self._back:
            self._back = [replace_forward(layer, self._make(layer, layer.forward)) for layer in self.layers]

    def off(self) -> None:
        """End; the model is as it was."""
        for back in self._back:
            back()
        self._back = []


class Wrapping:
    """Another forward pass for the layers below a model's head, between `on` and `off`.

    Of several on one model, the last one that was put on must be taken off first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = layers_below_head(model)
        self._forward: Callable[..., Any] | None = None
        """What is wrapped; None while it is off."""
        self._back: Callable[[], None] | None = None

    def on(self) -> None:
        """Begin."""
        if self._layers is None or self._forward:
            return
        self._forward = self._layers.forward

        @functools.wraps(self._layers.forward)
        def forward(*positional: Any, **inputs: Any) -> Any:
            return self._run(*positional, **inputs)

        self._back = replace_forward(self._layers, forward)

    def off(self) -> None:
        """End; the model is as it was."""
        if self._back:
            self._back()
        self._back = self._forward = None

    def _run(self, *positional: Any, **inputs: Any) -> Any:
        """The forward pass, which calls `_forward`."""
        raise NotImplementedError
