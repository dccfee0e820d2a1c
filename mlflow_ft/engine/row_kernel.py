"""Attention of rows laid end to end by torch's kernel for CPUs, as one function of autograd.

With one call of torch's attention for each row, autograd keeps the output of every row and, for the next layer, that of
all rows; for rows with a beginning in common also their keys and values, once more for every head that shares them, and
a mask of numbers in every layer. Here queries, keys, values and outputs are kept once, and what a row takes from
others is taken again in the backward pass. It is the same kernel on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

_KERNEL: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, eq=False)
class Row:
    """What a row's own tokens attend to."""

    length: int
    """Tokens of the row that are in the batch; they follow those of the row before."""
    places: Tensor | None = None
    """Where its keys are in the batch; None if they are its own tokens."""
    mask: Tensor | None = None
    """Which keys each token sees, bool of shape (1, 1, length, keys); None if all up to itself."""
    _numbers: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def numbers(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as numbers that are added to the scores; made once for all layers."""
        if self.mask is None or self.mask.dtype != torch.bool:
            return self.mask
        if dtype not in self._numbers:
            zeros = torch.zeros_like(self.mask, dtype=dtype)
            self._numbers[dtype] = zeros.masked_fill_(~self.mask, -torch.inf)
        return self._numbers[dtype]


def fits(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch would use this kernel for such rows."""
    if query.device.type != "cpu" or dropout or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return (
        int(torch._fused_sdp_choice(query, key, value, is_causal=True, enable_gqa=True))
        == SDPBackend.FLASH_ATTENTION.value
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Sequence[Row], *, causal: bool, scale: float | None
) -> Tensor:
    """The attention of all rows, of shape (1, tokens, heads, size).

    Args:
        query: of shape (1, heads, tokens, size).
        key: of shape (1, key heads, tokens, size).
        value: of shape (1, key heads, tokens, size).
        rows: in the order of the batch.
        causal: whether a token of a row without a mask sees only those up to itself.
        scale: by which scores are multiplied; None for one over the root of the size.
    """
    apply: Any = _RowAttention.apply  # which torch does not annotate
    result: Tensor = apply(query, key, value, rows, causal, scale)
    return result


class _RowAttention(torch.autograd.Function):
    """`attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Sequence[Row],
        causal: bool,  # noqa: FBT001  # torch passes everything by position
        scale: float | None,
    ) -> Tensor:
        _, heads, tokens, size = query.shape
        out = query.new_empty(1, tokens, heads, size)
        sums = []
        for row, own in _with_places(rows):
            keys, values = (_seen(states, row, own) for states in (key, value))
            settings = _settings(row, query.dtype, causal=causal, scale=scale)
            part, log_sum = _KERNEL(query[:, :, own], keys, values, **settings)
            out[:, own] = part.transpose(1, 2)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.rows, ctx.causal, ctx.scale = rows, causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key and value."""
        query, key, value, out, *sums = ctx.saved_tensors
        of_out, out = gradients[0].transpose(1, 2), out.transpose(1, 2)
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (row, own), log_sum in zip(_with_places(ctx.rows), sums, strict=True):
            keys, values = (_seen(states, row, own) for states in (key, value))
            settings = _settings(row, query.dtype, causal=ctx.causal, scale=ctx.scale)
            own_out = out[:, :, own]
            parts = _BACKWARD(of_out[:, :, own], query[:, :, own], keys, values, own_out, log_sum, **settings)
            of_query[:, :, own] = parts[0]
            for whole, part in zip((of_key, of_value), parts[1:], strict=True):
                if row.places is None:
                    whole[:, :, own] += part
                else:
                    whole.index_add_(2, row.places, part)
        return of_query, of_key, of_value, None, None, None


def _with_places(rows: Sequence[Row]) -> Iterator[tuple[Row, slice]]:
    """Each row, and where its own tokens are in the batch."""
    begin = 0
    for row in rows:
        yield row, slice(begin, begin + row.length)
        begin += row.length


def _seen(states: Tensor, row: Row, own: slice) -> Tensor:
    """The keys, or values, that a row sees."""
    return states[:, :, own] if row.places is None else states.index_select(2, row.places)


def _settings(row: Row, dtype: torch.dtype, *, causal: bool, scale: float | None) -> dict[str, Any]:
    mask = row.numbers(dtype)
    return {"dropout_p": 0.0, "is_causal": causal and mask is None, "attn_mask": mask, "scale": scale}
