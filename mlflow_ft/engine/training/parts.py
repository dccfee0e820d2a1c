"""A padded batch in parts, each with a forward and a backward pass of its own: the same gradients in less memory.

What layers keep for the backward pass grows with the tokens of a pass. A GPU needs many tokens at once to be busy; on a
CPU products of matrices are as fast with 1,000 tokens as with 4,000, and smaller tensors stay in its caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlflow_ft.engine.models import beginnings

IN_ROWS = {"input_ids", "attention_mask", "labels"}
IN_PAIRS = {"input_ids", "attention_mask", "completion_mask"}
OF_PAIRS = {"ref_chosen_logps", "ref_rejected_logps"}
"""The tensors of a batch of pairs with one number for each pair."""
Part = Mapping[str, Any]
"""The tensors of some rows of a batch."""


class InParts(ABC):
    """A trainer that computes a batch in parts: a mixin before its class."""

    at_once: int | None = None
    """Tokens of a part; None if a batch is one part."""
    shares_beginnings = False
    """Whether what rows of a batch begin with in common is computed once."""
    by_tokens = False
    """Whether the loss is divided by the tokens of the whole step, else it is the mean over the rows of a batch."""
    _share = 1.0
    """By which the loss of a part is multiplied."""
    aux_loss_enabled: bool
    _metrics: Any

    def parts(self, inputs: Part) -> list[Part]:
        """What has a forward and backward pass of its own."""
        if self.at_once is None or self.aux_loss_enabled:  # the balance of experts is that of the whole batch
            return [inputs]
        return self._parts(inputs, self.at_once)

    @abstractmethod
    def _parts(self, inputs: Part, tokens: int) -> list[Part]:
        """The rows of a batch in parts of at most so many tokens."""

    @staticmethod
    @abstractmethod
    def _weights(part: Part) -> Mapping[str, float]:
        """By how much a part's value of a metric counts; if it is not among them, by its rows."""

    def training_step(self, model: Any, inputs: Part, num_items_in_batch: Any = None) -> Tensor:
        """The gradients of a batch, part by part; the sum of the parts' losses is the loss of the batch."""
        step: Any = super().training_step  # type: ignore[misc]  # a mixin
        several = [inputs] if self.by_tokens and num_items_in_batch is None else self.parts(inputs)
        if len(several) == 1:
            loss: Tensor = step(model, inputs, num_items_in_batch)
            return loss
        metrics, losses = self._metrics["train"], []
        before = {name: len(values) for name, values in metrics.items()}
        try:
            for part in several:
                self._share = 1.0 if self.by_tokens else len(part["input_ids"]) / len(inputs["input_ids"])
                losses.append(step(model, dict(part), num_items_in_batch))
        finally:
            self._share = 1.0
        weights = [self._weights(part) for part in several]
        for name, values in metrics.items():
            new = slice(before.get(name, 0), None)
            if len(values[new]) == len(several):
                by = [weight.get(name, len(part["input_ids"])) for weight, part in zip(weights, several, strict=True)]
                values[new] = [_mean(values[new], by)]
        return torch.stack(losses).sum(dim=0)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / (sum(weights) or 1)


def of_rows(inputs: Part, tokens: int, *, shares: bool = False) -> list[Part]:
    """The rows of a batch in parts of at most so many tokens, in order; one part for a batch that is left whole.

    Args:
        inputs: IN_ROWS, each of shape (rows, length), with padding on the right. A batch with other tensors is one
            part.
        tokens: of a part; a longer row is a part by itself.
        shares: whether what a row has in common with the beginning of another row of its part is computed once; it then
            does not count.
    """
    mask = inputs.get("attention_mask")
    if set(inputs) != IN_ROWS or mask is None or mask.sum() <= tokens:
        return [inputs]
    lengths: list[int] = mask.sum(dim=1).tolist()
    alike = _alike(inputs).tolist() if shares else None
    return [_rows(inputs, list(rows)) for rows in _grouped(lengths, alike, tokens)]


def of_pairs(inputs: Part, tokens: int, *, shares: bool = False) -> list[Part]:
    """The same of a batch of pairs: first all chosen rows, then all rejected ones. A pair is in one part.

    Args:
        inputs: IN_PAIRS, each of shape (2 x pairs, length), and OF_PAIRS of shape (pairs,) if they are there.
        tokens: of a part.
        shares: whether the common beginning of a pair is computed once.
    """
    mask = inputs["attention_mask"]
    if set(inputs) - OF_PAIRS != IN_PAIRS or mask.sum() <= tokens:
        return [inputs]
    count = len(mask) // 2
    own = mask.sum(dim=1).view(2, count).sum(dim=0)
    lengths: list[int] = (own - _alike(inputs)[:count, count:].diagonal() if shares else own).tolist()
    parts = [list(pairs) for pairs in _grouped(lengths, None, tokens)]
    return [_rows(inputs, [*pairs, *(count + pair for pair in pairs)], pairs) for pairs in parts]


def _alike(inputs: Part) -> Tensor:
    """What each two rows have in common at their beginning, in tokens, if it is computed once, else 0."""
    common = beginnings.common(inputs["input_ids"], inputs["attention_mask"].bool())
    return common.where(common >= beginnings.SHORTEST, 0)


def rows_at_once(rows: int, length: int, tokens: int) -> int:
    """How many of so many rows of this length are in one part at most."""
    return min(rows, -(-tokens // length))


def _grouped(lengths: Sequence[int], alike: Sequence[Sequence[int]] | None, tokens: int) -> list[range]:
    """The rows of each part; `alike` has what each two rows have in common, which counts once."""
    parts, begin, total = [], 0, 0
    for row, length in enumerate(lengths):
        own = length - (max(alike[row][begin:row], default=0) if alike else 0)
        if row > begin and total + own > tokens:
            parts.append(range(begin, row))
            begin, total, own = row, 0, length
        total += own
    return [*parts, range(begin, len(lengths))]


def _rows(inputs: Part, rows: list[int], pairs: Sequence[int] = ()) -> Part:
    """These rows, padded to the longest of them, and OF_PAIRS of these pairs."""
    length = int(inputs["attention_mask"][rows].sum(dim=1).max())
    return {name: values[pairs] if name in OF_PAIRS else values[rows, :length] for name, values in inputs.items()}
