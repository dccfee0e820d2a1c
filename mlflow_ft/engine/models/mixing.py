"""Through which layers of a model one packed row changes the next.

The model runs on two packed rows, and again with other tokens in the first. In this second pass every numbered layer,
and every part of it, gets for the second row the same input as in the first pass. If its output for the second row
still differs, the layer itself reads the first row; what earlier layers let through does not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlflow_ft.engine.loss import on_device

SHOWN = 3
"""At most so many layers of a class are named."""
SAME = 1e-5
"""Largest difference, relative to the largest output, that may be rounding."""
PART = re.compile(r"(?:[^.\d][^.]*\.)*\d+(?:\.[^.]+)?")
"""A numbered layer, or a part of one: `model.layers.0`, `model.layers.0.self_attn`."""


def named(model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, begin: int) -> str:
    """The layers that read tokens before position `begin` for positions after it, by class; "" if there are none.

    `first` and `second` are batches of one row, equal from `begin` on.
    """
    classes: dict[str, list[str]] = {}
    for name in layers(model, first, second, begin=begin):
        classes.setdefault(type(model.get_submodule(name)).__name__, []).append(name.removeprefix("base_model.model."))
    return "; ".join(f"{_listed(names)} ({kind})" for kind, names in classes.items())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@torch.no_grad()
def layers(model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, begin: int) -> list[str]:
    """The names of those layers, or of the parts that do it: `model.layers.0.self_attn`."""
    watch = _Watch(begin=begin, length=first["input_ids"].shape[1])
    hooks = list(watch.over(model))
    device = next(model.parameters()).device
    try:
        for batch in (first, second):
            inputs = on_device(batch, device)
            inputs.pop("labels", None)
            model(**inputs, use_cache=False)
            watch.next_pass()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in watch.differ if not any(other.startswith(f"{name}.") for other in watch.differ)]


class _Watch:
    """Records the inputs and outputs of every layer in the first pass, and compares the outputs of the second."""

    def __init__(self, *, begin: int, length: int) -> None:
        self._begin, self._length = begin, length
        self._second = False
        self._calls: Counter[str] = Counter()
        self._inputs: dict[tuple[str, int, int | str], Tensor] = {}
        self._outputs: dict[tuple[str, int], Tensor] = {}
        self.differ: dict[str, None] = {}

    def next_pass(self) -> None:
        self._second = True
        self._calls.clear()

    def over(self, model: nn.Module) -> Iterator[Any]:
        for name, layer in model.named_modules():
            if PART.fullmatch(name):
                yield layer.register_forward_pre_hook(self._before(name), with_kwargs=True)
                yield layer.register_forward_hook(self._after(name))

    def _before(self, name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._calls[name] += 1
            new = [self._as_before(value, name, place) for place, value in enumerate(args)]
            return tuple(new), {word: self._as_before(value, name, word) for word, value in kwargs.items()}

        return hook

    def _as_before(self, value: Any, name: str, place: int | str) -> Any:
        """An input: recorded in the first pass; in the second, that record replaces the part of the second row."""
        if not self._fits(value):
            return value
        key = (name, self._calls[name], place)
        if not self._second:
            self._inputs[key] = value[:, self._begin :].clone()
        elif key in self._inputs:
            return torch.cat([value[:, : self._begin], self._inputs[key]], dim=1)
        return value

    def _after(self, name: str) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> None:
            key = (name, self._calls[name])
            outputs = output if isinstance(output, tuple) else (output,)
            hidden = next((value for value in outputs if self._fits(value)), None)
            if hidden is None:
                return
            rest = hidden[:, self._begin :]
            if not self._second:
                self._outputs[key] = rest.clone()
            elif key in self._outputs:
                rounding = max(SAME, 2 * torch.finfo(rest.dtype).eps)
                if (rest - self._outputs[key]).abs().max() > rounding * self._outputs[key].abs().max():
                    self.differ[name] = None

        return hook

    def _fits(self, value: Any) -> bool:
        """Whether it holds one vector for each position."""
        floats = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3
        return floats and value.shape[:2] == (1, self._length)
