"""The weights of 4-bit layers on a CPU, dequantised once for many small batches.

bitsandbytes dequantises every weight for every token of an answer, which takes almost as long as the product. Held,
they take eight times their memory: so only as much is used as the process has had before, and its peak does not grow.
It computes just this, so outputs and gradients are equal bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from mlflow_ft.engine import hardware
from mlflow_ft.engine.models.fused_lora import is_matrix
from mlflow_ft.engine.models.wrapping import Replacing


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Hold the dequantised weights of as many layers inside as the process has had the memory for before."""
    holding = Replacing(_fitting(model), _forward)
    holding.on()
    try:
        yield
    finally:
        holding.off()


def _fitting(model: nn.Module) -> list[Any]:
    layers = [layer for layer in model.modules() if type(layer) is Linear4bit and _plain(layer)]
    sizes = [layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers]
    spare = hardware.most_in_use() - hardware.in_use() if layers else 0
    together = itertools.accumulate(sizes)
    return [layer for layer, size in zip(layers, together, strict=True) if size <= spare]


def _plain(layer: Any) -> bool:
    """Whether its type to compute in does not depend on its first input; see `is_matrix`."""
    return is_matrix(layer) and layer.compute_dtype is not None and not layer.weight.is_meta


def _forward(layer: Any, _usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass of a layer with its weight held, in place of the usual one."""
    dtype = layer.compute_dtype
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)

    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)

    return forward
