"""The gated MLP of a LoRA model in one step: the same values and gradients with fewer new tensors.

A gated MLP is down(silu(gate(x)) * up(x)). Autograd makes a new tensor for each activation, product and sum of its
forward and backward pass. These are the widest tensors of a model, and on a CPU the system clears each before it is
written. Here they are written into tensors that are no longer needed, and only the input and the outputs of `gate` and
`up` are kept for the backward pass.

It is used for MLPs of frozen matrices, with or without a plain LoRA product (`fused_lora`); matrices in 4 bits are
dequantised whenever they are needed, as bitsandbytes does. Others stay as they are, and so does an MLP with a hook on
one of its layers, which would not be called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from bitsandbytes import functional as four_bits
from torch import Tensor, nn

from mlflow_ft.engine.models import recomputing
from mlflow_ft.engine.models.fused_lora import ADAPTED, is_matrix, plain
from mlflow_ft.engine.models.wrapping import Replacing

LAYERS = ("gate_proj", "up_proj", "down_proj")
SILU = ("SiLU", "SiLUActivation")


class Matrix(NamedTuple):
    """A frozen matrix with its bias, and the low-rank product that is added to it."""

    layer: Any
    """The frozen layer."""
    low: Tensor | None
    """Of shape (rank, in); None without LoRA."""
    high: Tensor | None
    """Of shape (out, rank)."""
    scaling: float

    @property
    def weight(self) -> Tensor:
        """Of shape (out, in)."""
        weight = self.layer.weight
        if type(self.layer) is nn.Linear:
            return weight  # type: ignore[no-any-return]  # a layer of any type
        whole: Tensor = four_bits.dequantize_4bit(weight.view(-1, 1), weight.quant_state)
        return whole.to(self.layer.compute_dtype)

    def times(self, x: Tensor) -> Tensor:
        """The layer's output, of shape (..., out), for `x`, of shape (..., in)."""
        out = nn.functional.linear(x, self.weight, self.layer.bias)
        if self.low is not None and self.high is not None:
            inner = x.flatten(0, -2) @ self.low.t()
            out.view(-1, out.shape[-1]).addmm_(inner, self.high.t(), alpha=self.scaling)
        return out

    def back(self, gradient: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The gradient of the input, added to `into`, and what the gradient of `low` is made of."""
        of_input = gradient @ self.weight if into is None else into.addmm_(gradient, self.weight)
        if self.low is None or self.high is None:
            return of_input, None
        inner = (gradient @ self.high).mul_(self.scaling)
        return of_input.addmm_(inner, self.low), inner

    def of_low_rank(self, x: Tensor, gradient: Tensor, inner: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of `low` and `high`, from the input and the gradient of the output."""
        if self.low is None or inner is None:
            return None, None
        return inner.t() @ x, (gradient.t() @ (x @ self.low.t())).mul_(self.scaling)


class GatedProduct(torch.autograd.Function):
    """`down(silu(gate(x)) * up(x))`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Matrix], *trained: Tensor | None) -> Tensor:
        """Compute the output, of shape (..., out).

        Args:
            ctx: keeps the input and the outputs of gate and up.
            x: of shape (..., in).
            layers: gate, up and down.
            trained: `low` and `high` of each of them.
        """
        gate, up, down = layers
        gated, raised = gate.times(x), up.times(x)
        ctx.layers = layers
        ctx.save_for_backward(x, gated, raised, *trained)
        return down.times(nn.functional.silu(gated).mul_(raised))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `x`, and of `low` and `high` of each layer."""
        whole, *between = ctx.saved_tensors  # once: checkpointing computes them again
        x, gated, raised = (kept.flatten(0, -2) for kept in (whole, *between[:2]))
        trained = iter(between[2:])
        gate, up, down = (layer._replace(low=next(trained), high=next(trained)) for layer in ctx.layers)
        of_out = gradients[0].flatten(0, -2)
        of_product, down_inner = down.back(of_out)
        active = nn.functional.silu(gated)
        of_down = down.of_low_rank(active * raised, of_out, down_inner)
        of_up = active.mul_(of_product)
        of_product.mul_(raised)
        of_gate = torch.ops.aten.silu_backward.grad_input(of_product, gated, grad_input=of_product)
        of_x, gate_inner = gate.back(of_gate)
        of_x, up_inner = up.back(of_up, of_x)
        of_others = *gate.of_low_rank(x, of_gate, gate_inner), *up.of_low_rank(x, of_up, up_inner)
        return of_x.view_as(whole), None, *of_others, *of_down


class FusedMlp(Replacing):
    """Computes the gated MLPs of a model in one step, between `on` and `off`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([layer for layer in model.modules() if _is_gated(layer)], _forward)


def _is_gated(layer: Any) -> bool:
    """Whether it computes down(silu(gate(x)) * up(x)), by one example."""
    if type(getattr(layer, "act_fn", None)).__name__ not in SILU:
        return False
    parts: list[Any] = [getattr(layer, name, None) for name in LAYERS]
    bases: list[Any] = [part.get_base_layer() if type(part) in ADAPTED else part for part in parts]
    if any(not is_matrix(base) or base.weight.is_meta for base in bases):
        return False
    gate, up, down = parts
    like = bases[0]
    x = torch.linspace(-1, 1, like.in_features, dtype=_dtype(like), device=like.weight.device)[None, None]
    with torch.no_grad():
        try:
            found = layer(x)
        except TypeError:  # it takes more than the hidden states
            return False
        return isinstance(found, Tensor) and recomputing.equal(found, down(nn.functional.silu(gate(x)) * up(x)))


def _dtype(layer: Any) -> Any:
    """The type that a layer computes in; None if bitsandbytes takes that of its first input."""
    return layer.weight.dtype if type(layer) is nn.Linear else layer.compute_dtype


def _forward(mlp: Any, usual: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of an MLP, which is the usual one for all that is not plain."""
    product: Any = GatedProduct.apply  # which torch does not annotate

    def forward(x: Tensor, *more: Any, **named: Any) -> Any:
        own = more or named or recomputing.looked_into(mlp.act_fn)
        layers = None if own else [_matrix(getattr(mlp, name), x) for name in LAYERS]
        if layers is None or None in layers:
            return usual(x, *more, **named)
        return product(x, layers, *(weight for layer in layers if layer for weight in (layer.low, layer.high)))

    return forward


def _matrix(layer: Any, x: Tensor) -> Matrix | None:
    """The layer, if it is nothing but a frozen matrix, or that and a plain LoRA product; else None."""
    low: Any = None
    high: Any = None
    scaling, parts = 0.0, [layer]
    if type(layer) in ADAPTED:
        if not layer.disable_adapters or layer.merged:
            if (name := plain(layer, x)) is None:
                return None
            low, high, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
        layer = layer.base_layer
        parts.append(layer)
    if not is_matrix(layer) or any(recomputing.looked_into(part) for part in parts):
        return None
    if layer.weight.requires_grad or _dtype(layer) != x.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    return Matrix(layer, low, high, scaling)
