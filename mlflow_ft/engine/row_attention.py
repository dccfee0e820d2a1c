"""Attention row by row, where the rows of a batch are laid end to end in one.

transformers separates such rows by a mask of (tokens x tokens), most of which is False: four rows of 500 tokens cost as
much as one of 2,000. Here each row attends to itself alone, by the same kernel, with its own part of that mask, or with
none where that part is causal. This is exact: what is left out is masked. On a CPU all rows are one function of
autograd (`row_kernel`), which keeps less.

It is used by models that compute attention with transformers' `sdpa` interface. FlashAttention's kernels take rows laid
end to end as they are; models with other implementations use the whole mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from mlflow_ft.engine import row_kernel
from mlflow_ft.engine.row_kernel import Row

NAME = "sdpa"
ROWS = "rows"
"""The attribute of a mask that holds what each row attends to."""


@contextmanager
def of_rows(lengths: Sequence[int], places: Sequence[Tensor] | None = None) -> Iterator[None]:
    """While a model's forward pass runs: attention row by row, if its batch is of two or more rows laid end to end.

    Args:
        lengths: tokens of each row that are in the batch.
        places: for each row, where all its tokens are in the batch, if rows have a beginning in common
            (`models.beginnings`): a row's own tokens are its last ones, and each token sees those of its row only.
    """
    if len(lengths) < 2 or NAME in ALL_MASK_ATTENTION_FUNCTIONS._local_mapping:
        yield
        return
    AttentionInterface.register(NAME, attention)  # for good: checkpointed layers run again in the backward pass
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = _Masks(lengths, places)
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS[NAME]


def lengths(inputs: Mapping[str, Any]) -> list[int]:
    """The tokens of each row of a batch of rows laid end to end; [] for another batch.

    Such a batch has `position_ids` of shape (1, tokens), which begin at 0 with every row, and no `attention_mask`.
    """
    positions = inputs.get("position_ids")
    if positions is None or "attention_mask" in inputs or positions.dim() != 2 or positions.shape[0] != 1:
        return []
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    if not starts or starts[0] != 0:
        return []
    return [end - start for start, end in zip(starts, [*starts[1:], positions.shape[1]], strict=True)]


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Attention with `sdpa`, as in transformers; row by row with a mask of ROWS."""
    rows: Sequence[Row] | None = getattr(attention_mask, ROWS, None)
    if rows is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return result
    if more.get("position_bias") is not None:
        raise ValueError("rows laid end to end cannot have a bias of positions")
    if more.get("softcap") is None and row_kernel.fits(query, key, value, more.get("dropout", 0.0)):
        told = more.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if told is None else told)
        return row_kernel.attention(query, key, value, rows, causal=causal, scale=more.get("scaling")), None
    split = zip(*(states.split([row.length for row in rows], dim=2) for states in (query, key, value)), strict=True)
    parts = []
    for row, (own_query, own_key, own_value) in zip(rows, split, strict=True):
        seen: dict[str, Any] = {"key": own_key, "value": own_value}
        if row.places is not None:
            seen = {"key": key.index_select(2, row.places), "value": value.index_select(2, row.places)}
        parts.append(sdpa_attention_forward(module, own_query, **seen, attention_mask=row.mask, **more)[0])
    return torch.cat(parts, dim=1), None


class _Masks:
    """Makes the masks of a batch whose rows have these lengths, in place of transformers' `sdpa_mask`."""

    def __init__(self, lengths: Sequence[int], places: Sequence[Tensor] | None) -> None:
        self._lengths = lengths
        self._places = places

    def __call__(
        self, batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **more: Any
    ) -> Tensor | None:
        """A mask without content that has the rows' own masks; it cannot be used as a mask by mistake."""
        tokens = sum(self._lengths)
        if (batch_size, q_length, kv_length, q_offset, kv_offset) != (1, tokens, tokens, 0, 0):
            return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **more)
        more["allow_is_causal_skip"] = False
        stands_for_it = torch.empty((1, 1, tokens, 0), dtype=torch.bool, device=more.get("device"))
        setattr(stands_for_it, ROWS, self._by_place(more) if self._places else self._in_order(more))
        return stands_for_it

    def _in_order(self, more: Mapping[str, Any]) -> list[Row]:
        rows, start = [], 0
        for length in self._lengths:
            mask = sdpa_mask(1, length, length, start, start, **more)
            rows.append(Row(length, mask=None if mask is None or _causal(mask) else mask))
            start += length
        return rows

    def _by_place(self, more: Mapping[str, Any]) -> list[Row]:
        """Each mask is that of a row alone, because the tokens of a row are not next to each other."""
        rows = []
        for length, places in zip(self._lengths, self._places or (), strict=True):
            shared = len(places) - length
            mask = sdpa_mask(1, length, len(places), shared, 0, **{**more, "attention_mask": None})
            alone = not shared and (mask is None or _causal(mask))
            rows.append(Row(length, places if shared else None, None if alone else mask))
        return rows


def _causal(mask: Tensor) -> bool:
    return torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril())
