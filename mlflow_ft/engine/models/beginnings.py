"""Rows of a batch that begin with the same tokens: the common beginning is computed once.

The chosen and the rejected answer of a preference have one prompt, and many rows have one system prompt. In a causal
model the states of a beginning do not depend on what follows it, so a row may take them from an earlier row of the
batch:

    row 0   system prompt . question . chosen answer        all computed
    row 1   system prompt . question . rejected answer      only the rejected answer is; the rest is that of row 0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST = 16
"""Tokens: a shorter beginning is computed again."""


class Plan(NamedTuple):
    """What is computed of a batch of shape (rows, length)."""

    computed: Tensor
    """Which tokens, bool of shape (rows, length)."""
    places: list[Tensor]
    """For each row, where each of its tokens is among those that are computed, laid end to end."""


def plan(ids: Tensor, inside: Tensor) -> Plan | None:
    """Which tokens must be computed; None if no two rows have a beginning in common.

    Args:
        ids: token ids, of shape (rows, length).
        inside: where there are tokens, bool of shape (rows, length), on the left of each row.
    """
    lengths: list[int] = inside.sum(dim=1).tolist()
    sources = [_source(row, alike, lengths[row]) for row, alike in enumerate(common(ids, inside).tolist())]
    if not any(shared for _, shared in sources):
        return None
    computed, begin = inside.clone(), 0
    places: list[Tensor] = []
    for row, (source, shared) in enumerate(sources):
        computed[row, :shared] = False
        end = begin + lengths[row] - shared
        own = torch.arange(begin, end, device=ids.device)
        places.append(torch.cat([places[source][:shared], own]) if shared else own)
        begin = end
    return Plan(computed, places)


def common(ids: Tensor, inside: Tensor) -> Tensor:
    """For each two rows, how many tokens at their beginning are the same; of shape (rows, rows)."""
    both = inside[:, None] & inside[None] & (ids[:, None] == ids[None])
    return both.int().cumprod(dim=-1).sum(dim=-1)


def _source(row: int, alike: list[int], length: int) -> tuple[int, int]:
    """The earlier row from which a row takes its beginning, and how many tokens: at least the last one is its own."""
    source = max(range(row), key=lambda earlier: alike[earlier], default=0)
    shared = min(alike[source], length - 1) if row else 0
    return source, shared if shared >= SHORTEST else 0
