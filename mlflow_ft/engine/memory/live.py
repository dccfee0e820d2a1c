"""Counts the memory that is in use while code runs on tensors without memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRADIENTS, LOGITS, TEMPORARY = "gradients", "logits", "temporary"
KINDS = (
    ("attention", ("Attention", "Attn")),
    ("mixer", ("Mamba", "Mixer", "DeltaNet", "Conv1d", "SSM", "RetNet", "Recurrent")),
    ("feed-forward", ("MLP", "FeedForward", "Expert", "Moe", "MoE", "FFN", "SparseMoe", "Router")),
    ("norm", ("Norm",)),
    ("embedding", ("Embedding",)),
)
"""From the name of a layer's class to its kind; the innermost layer that has one decides."""
OTHER = "other"


class Live(TorchDispatchMode):
    """The bytes that are in use, and the most that ever were, by the kind of layer that took them.

    Works on fake tensors, whose storages have a size and a life but no memory: what torch takes and releases for a pass
    is counted as it would be, in seconds. Weights that exist beforehand are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak = 0
        self.at_peak: Mapping[str, int] = {}
        self._in_use = 0
        self._by_kind: dict[str, int] = {}
        self._sizes: dict[int, tuple[int, str]] = {}
        self._layers: list[str | None] = []
        self._known = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
        self._tuners = {
            id(part)
            for layer in model.modules()
            if isinstance(layer, BaseTunerLayer)
            for name, part in layer.named_modules()
            if name and not name.startswith("base_layer")
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take(tensor)
        return result

    def _take(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        kind = next((kind for kind in reversed(self._layers) if kind), TEMPORARY)
        self._sizes[key] = (storage.nbytes(), kind)
        self._add(kind, storage.nbytes())
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        size, kind = self._sizes.pop(key)
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self._in_use += size
        self._by_kind[kind] = self._by_kind.get(kind, 0) + size
        if self._in_use > self.peak:
            self.peak, self.at_peak = self._in_use, dict(self._by_kind)

    @property
    def by_kind(self) -> dict[str, int]:
        """The bytes that are in use now, by the kind of layer that took them."""
        return {kind: size for kind, size in self._by_kind.items() if size}

    def is_now(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor that is in use as another kind."""
        key = tensor.untyped_storage()._cdata
        if key not in self._sizes:
            return
        size, before = self._sizes[key]
        self._sizes[key] = (size, kind)
        self._by_kind[before] -= size
        self._by_kind[kind] = self._by_kind.get(kind, 0) + size

    @contextmanager
    def of_kind(self, kind: str) -> Iterator[None]:
        """Count what is taken inside as this kind, whatever the layer."""
        self._layers.append(kind)
        try:
            yield
        finally:
            self._layers.pop()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count everything that is done inside, and gradients as what they are."""
        gradients = [
            weight.register_post_accumulate_grad_hook(self._is_gradient)
            for weight in model.parameters()
            if weight.requires_grad
        ]
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with self:
                yield
        finally:
            for hook in (before, after, *gradients):
                hook.remove()

    def _is_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self.is_now(weight.grad, GRADIENTS)

    def _enter(self, layer: nn.Module, _: Any) -> None:
        self._layers.append("adapter" if id(layer) in self._tuners else kind_of(layer))

    def _leave(self, *_: Any) -> None:
        self._layers.pop()


def kind_of(layer: nn.Module) -> str | None:
    """The kind of a layer by the name of its class; None if it belongs to the layer around it.

    >>> kind_of(nn.LayerNorm(2)), kind_of(nn.Linear(2, 2))
    ('norm', None)
    """
    name = type(layer).__name__
    if name.endswith(("Layer", "Block", "Model")) and not name.endswith(("AttentionBlock", "MoeBlock", "MoEBlock")):
        return OTHER
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), None)


def gradients_in_use(model: nn.Module, live: Live) -> None:
    """Give every trained weight a gradient, as it has while gradients accumulate."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
            live.is_now(weight.grad, GRADIENTS)
