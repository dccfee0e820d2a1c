"""LoRA's part of a layer in one step: the same values and gradients with fewer passes over large tensors.

PEFT computes `base(x) + B(A(x)) * scaling` as two layers, a product and a sum, and autograd goes back through each of
them. Here the scaled product is added by the matrix multiplication itself, forward and backward:

    forward     out = base(x) + scaling * (x A') B'
    backward    with g the gradient of out, gB = scaling * g B:
                of x: gB A        of A: gB' x        of B: scaling * g' (x A')

It is used for layers that are nothing but this; all others (dropout, DoRA, biases, several adapters, other types) stay
PEFT's own. Layers in 4 bits are computed so on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import Linear4bit as LoraOn4bit
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from mlflow_ft.engine.models.wrapping import Replacing

ADAPTED = (Linear, LoraOn4bit)
"""Layers with an adapter."""


class FusedLora(Replacing):
    """Computes the plain LoRA layers of a model in one step, between `on` and `off`."""

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if type(layer) in ADAPTED]
        super().__init__([layer for layer in layers if type(layer) is Linear or is_matrix(layer.base_layer)], _forward)


def is_matrix(layer: Any) -> bool:
    """Whether it is nothing but a matrix with a bias, or such a one in 4 bits on a CPU."""
    if not isinstance(layer, nn.Module) or "forward" in vars(layer):  # none, or something else is in it
        return False
    if type(layer) is Linear4bit:
        weight: Any = layer.weight
        packed = getattr(weight.quant_state, "packing_format_for_cpu", False)  # for another multiplication
        return bool(weight.device.type == "cpu" and not packed)
    return type(layer) is nn.Linear


def _forward(layer: Linear, usual: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of a layer, which is the usual one for all that is not plain."""

    added: Any = LoraProduct.apply  # which torch does not annotate

    def forward(x: Tensor, *more: Any, **named: Any) -> Any:
        name = None if more or named else plain(layer, x)
        if name is None:
            return usual(x, *more, **named)
        low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
        return added(layer.base_layer(x), x, low, high, float(layer.scaling[name]))

    return forward


def plain(layer: Linear, x: Tensor) -> str | None:
    """The name of the adapter, if it is the only one and nothing but two matrices of the input's type; else None."""
    if layer.disable_adapters or layer.merged:
        return None
    if len(layer.active_adapters) != 1 or torch.is_autocast_enabled(x.device.type):
        return None
    name: str = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant:
        return None
    parts: tuple[Any, Any] = (layer.lora_A[name], layer.lora_B[name])
    simple = all(
        type(part) is nn.Linear and getattr(part, "bias", None) is None and part.weight.dtype == x.dtype
        for part in parts
    )
    return name if simple and isinstance(layer.lora_dropout[name], nn.Identity) else None


class LoraProduct(torch.autograd.Function):
    """`result + scaling * (x low') high'`."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, low: Tensor, high: Tensor, scaling: float) -> Tensor:
        """Add the product.

        Args:
            ctx: keeps what the backward pass needs: the input, not what follows from it.
            result: of shape (..., out).
            x: of shape (..., in).
            low: of shape (rank, in).
            high: of shape (out, rank).
            scaling: of the product.
        """
        ctx.save_for_backward(x, low, high)
        ctx.scaling = scaling
        inner = x.flatten(0, -2) @ low.t()
        added = torch.empty_like(result, memory_format=torch.contiguous_format)  # no view: models change it in place
        torch.addmm(result.flatten(0, -2), inner, high.t(), alpha=scaling, out=added.flatten(0, -2))
        return added

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `result`, `x`, `low` and `high`."""
        [gradient] = gradients
        x, low, high = ctx.saved_tensors
        rows, flat = gradient.flatten(0, -2), x.flatten(0, -2)
        inner = (rows @ high).mul_(ctx.scaling)
        of_x = (inner @ low).view_as(x) if ctx.needs_input_grad[1] else None
        of_low = inner.t() @ flat if ctx.needs_input_grad[2] else None
        of_high = (rows.t() @ (flat @ low.t())).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        return gradient, of_x, of_low, of_high, None
