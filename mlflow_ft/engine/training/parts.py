"""A padded batch in parts, each with a forward and a backward pass of its own: the same gradients in less memory.

What layers keep for the backward pass grows with the tokens of a pass. A GPU needs many tokens at once to be busy; on a
CPU products of matrices are as fast with 1,000 tokens as with 4,000, and smaller tensors stay in its caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mlflow_ft.engine.models import beginnings

KNOWN = {"input_ids", "attention_mask", "labels"}


def of(inputs: Mapping[str, Any], tokens: int, *, shares: bool = False) -> list[Mapping[str, Any]]:
    """The rows of a batch in parts of at most so many tokens, in order; [inputs] if they are one part.

    Args:
        inputs: `input_ids`, `attention_mask` and `labels`, each of shape (rows, length), with padding on the right. A
            batch with other tensors is one part.
        tokens: of a part.
        shares: whether what a row has in common with the beginning of another row of its part is computed once; it then
            does not count.
    """
    mask = inputs.get("attention_mask")
    if set(inputs) != KNOWN or mask is None or mask.sum() <= tokens:
        return [inputs]
    inside = mask.bool()
    lengths: list[int] = inside.sum(dim=1).tolist()
    alike = beginnings.common(inputs["input_ids"], inside).tolist() if shares else None
    parts = _grouped(lengths, alike, tokens)
    return [_rows(inputs, part, max(lengths[row] for row in part)) for part in parts] if len(parts) > 1 else [inputs]


def rows_at_once(rows: int, length: int, tokens: int) -> int:
    """How many of so many rows of this length are in one part at most."""
    return min(rows, -(-tokens // length))


def _grouped(lengths: Sequence[int], alike: Sequence[Sequence[int]] | None, tokens: int) -> list[range]:
    """The rows of each part; `alike` has the length of what two rows have in common at their beginning."""
    parts, begin, total = [], 0, 0
    for row, length in enumerate(lengths):
        shared = max(alike[row][begin:row], default=0) if alike else 0
        own = length - (shared if shared >= beginnings.SHORTEST else 0)
        if row > begin and total + own > tokens:
            parts.append(range(begin, row))
            begin, total, own = row, 0, length
        total += own
    return [*parts, range(begin, len(lengths))]


def _rows(inputs: Mapping[str, Tensor], rows: range, length: int) -> dict[str, Tensor]:
    """These rows, padded to the longest of them."""
    return {name: values[rows.start : rows.stop, :length] for name, values in inputs.items()}
