"""Activations that cost little are computed again in the backward pass instead of being kept: the same gradients.

A third of what a transformer keeps for its backward pass is the output of norms, the activation of a gate, and the
product of gate and values in front of the last layer of an MLP. They follow from tensors that are kept anyway, in a few
operations on each number, by the same code: gradients are equal bit for bit. Layers are recognised by what they do, not
by the model's name; what is not recognised is kept, as always.

In contrast to gradient checkpointing no matrix is multiplied again. Where that is on, it keeps even less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlflow_ft.engine.models.wrapping import Wrapping

Compute = Callable[[], Tensor]
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""The parts of an MLP that computes down(act(gate(x)) * up(x))."""


class Recomputing(Wrapping):
    """Keeps less of a model's forward passes for their backward passes, between `on` and `off`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._marks = _Marks()
        self._handles: list[Any] = []

    def on(self) -> None:
        """Begin."""
        if self._layers is None or self._forward:
            return
        for layer in self._layers.modules():
            if type(layer).__name__.endswith(("RMSNorm", "LayerNorm")):
                self._handles.append(layer.register_forward_hook(self._after_norm))
            elif all(isinstance(getattr(layer, name, None), nn.Module) for name in GATED):
                self._handles += _Gated(layer, self._marks).hooks()
        super().on()

    def off(self) -> None:
        """End; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        super().off()

    def _run(self, *positional: Any, **inputs: Any) -> Any:
        assert self._forward is not None
        if not torch.is_grad_enabled():
            return self._forward(*positional, **inputs)
        with torch.autograd.graph.saved_tensors_hooks(self._marks.pack, self._marks.unpack):
            return self._forward(*positional, **inputs)

    def _after_norm(self, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            source = given[0].detach()
            self._marks.mark(output, [source], lambda: layer.forward(source))


class _Gated:
    """Marks what an MLP computes between its layers."""

    def __init__(self, layer: Any, marks: _Marks) -> None:
        self._layer = layer
        self._marks = marks
        self._gate: Tensor | None = None
        self._up: Tensor | None = None
        self._fits: bool | None = None

    def hooks(self) -> list[Any]:
        """The hooks, on."""
        return [
            self._layer.gate_proj.register_forward_hook(self._after_gate),
            self._layer.up_proj.register_forward_hook(self._after_up),
            self._layer.act_fn.register_forward_hook(self._after_act),
            self._layer.down_proj.register_forward_pre_hook(self._before_down),
        ]

    def _after_gate(self, layer: nn.Module, given: Any, output: Any) -> None:
        self._gate = output.detach() if isinstance(output, Tensor) else None

    def _after_up(self, layer: nn.Module, given: Any, output: Any) -> None:
        self._up = output.detach() if isinstance(output, Tensor) else None

    def _after_act(self, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        gate, act = self._gate, self._layer.act_fn
        if gate is not None and isinstance(output, Tensor) and _same(given[0], gate):
            self._marks.mark(output, [gate], lambda: act.forward(gate))

    def _before_down(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        gate, up, act = self._gate, self._up, self._layer.act_fn
        self._gate = self._up = None
        if gate is None or up is None or len(given) != 1 or gate.shape != up.shape:
            return
        if self._fits is None:  # once: is it this product?
            with torch.no_grad():
                self._fits = given[0].shape == gate.shape and equal(act.forward(gate) * up, given[0])
        if self._fits:
            self._marks.mark(given[0], [gate, up], lambda: act.forward(gate) * up)


def looked_into(layer: nn.Module) -> bool:
    """Whether a hook other than those of this module looks into what a layer computes."""
    hooks = *layer._forward_pre_hooks.values(), *layer._forward_hooks.values()
    foreign = [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), _Gated)]
    return bool(foreign or layer._backward_hooks or layer._backward_pre_hooks)


class _Marks:
    """The tensors that can be computed again while they are alive, by their storage."""

    def __init__(self) -> None:
        self._by_storage: dict[int, tuple[weakref.ref[Tensor], _Again]] = {}
        self._latest: tuple[_Again | None, Tensor | None] = (None, None)

    def mark(self, output: Tensor, sources: Sequence[Tensor], compute: Compute) -> None:
        """`compute` gives the content of `output` again, as long as nobody changes the sources."""
        if not (output.requires_grad and output.is_contiguous()):
            return
        key = _storage(output)
        if output.storage_offset() or any(_storage(source) == key for source in sources):
            return

        def forget(gone: weakref.ref[Tensor]) -> None:
            if (known := self._by_storage.get(key)) and known[0] is gone:
                del self._by_storage[key]

        self._by_storage[key] = (weakref.ref(output, forget), _Again(output, sources, compute))

    def pack(self, tensor: Tensor) -> Any:
        """What autograd keeps: how to compute a marked tensor again, else the tensor."""
        known = self._by_storage.get(_storage(tensor)) if tensor.layout is torch.strided else None
        if known is None:
            return tensor
        output, again = known[0](), known[1]
        whole = output is not None and tensor.numel() == output.numel() and tensor.is_contiguous()
        if not whole or tensor.dtype != again.dtype or tensor._version != again.version:
            return tensor
        return again, tensor.shape

    def unpack(self, kept: Any) -> Tensor:
        """The tensor, computed again if need be; once for those that use it one after the other."""
        if isinstance(kept, Tensor):
            return kept
        again, shape = kept
        latest, value = self._latest
        if latest is not again or value is None:
            value = again.value()
            self._latest = (again, value)
        return value.view(shape)


class _Again:
    """How a tensor is computed again."""

    def __init__(self, output: Tensor, sources: Sequence[Tensor], compute: Compute) -> None:
        self.dtype, self.version = output.dtype, output._version
        self._sources = [(source, source._version) for source in sources]
        self._compute = compute
        self._kind = output.device.type
        self._autocast = torch.is_autocast_enabled(self._kind), torch.get_autocast_dtype(self._kind)

    @torch.no_grad()
    def value(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: a source was changed in place since.
        """
        if any(source._version != version for source, version in self._sources):
            raise RuntimeError("a tensor that the backward pass needs was changed in place")
        enabled, dtype = self._autocast
        with torch.autocast(self._kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            return self._compute()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(first: Any, second: Tensor) -> bool:
    return isinstance(first, Tensor) and _storage(first) == _storage(second) and first.shape == second.shape


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether they are equal; of tensors without content, whether they look alike."""
    if type(first).__name__ == "FakeTensor" or first.is_meta:
        return first.shape == second.shape
    return torch.equal(first, second)
