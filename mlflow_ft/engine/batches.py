"""Encoded rows as padded tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mlflow_ft.engine.tokens.masking import IGNORED
from mlflow_ft.rows import Encoded


def padded(rows: Sequence[Encoded], *, pad_token_id: int) -> dict[str, Tensor]:
    """Pad rows on the right: `input_ids`, `attention_mask` and `labels`, each int64 of shape (rows, longest).

    Padding is masked and never learned, whatever token it is.
    """
    longest = max(len(row.input_ids) for row in rows)
    shape = (len(rows), longest)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        batch["input_ids"][index, :length] = torch.tensor(row.input_ids)
        batch["attention_mask"][index, :length] = 1
        batch["labels"][index, :length] = torch.tensor(row.labels)
    return batch


def by_length(lengths: Sequence[int], *, batch_size: int, padding: bool = True) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: this needs little padding, and fails early on low memory.

    Without `padding` all rows of a batch have the same length.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for _, alike in itertools.groupby(order, key=lambda index: padding or lengths[index]):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
