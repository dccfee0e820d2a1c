"""Rows that have ended leave the batch while the others are still being generated.

transformers computes every row until the last one ends. Here a row that has ended is taken out of the cache, and gets
logits of zero, which `generate` ignores: it puts padding there. The others get the same logits as in the whole batch,
and the same random numbers, so they are continued as before.

Caches that keep a state besides keys and values stay whole, and so do rows with inputs besides tokens and their mask.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models.wrapping import replace_forward

CRITERIA = "_get_stopping_criteria"
"""The method of transformers that knows which tokens end a row."""
INPUTS = ("input_ids", "attention_mask", "position_ids", "cache_position")
"""Tensors of which the rows that are left can be taken."""


@contextmanager
def leaving_early(model: Any) -> Iterator[None]:
    """Let rows that have ended leave whatever the model generates inside; nothing else changes."""
    causal = causal_model(model)
    if CRITERIA in vars(causal) or not hasattr(causal, CRITERIA):  # it is on already, or generates in its own way
        yield
        return
    rows = _Rows(causal.forward)

    @functools.wraps(causal.forward)
    def forward(*positional: Any, **inputs: Any) -> Any:
        return rows.forward(*positional, **inputs)

    @functools.wraps(getattr(causal, CRITERIA))
    def criteria(*positional: Any, **named: Any) -> Any:
        found = getattr(type(causal), CRITERIA)(causal, *positional, **named)
        rows.begin(found)
        return found

    setattr(causal, CRITERIA, criteria)
    back = replace_forward(causal, forward)
    try:
        yield
    finally:
        back()
        delattr(causal, CRITERIA)


class _Rows:
    """The rows of the batch that is being generated."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._ends: Tensor | None = None
        """Ids of the tokens that end a row; None where no row may leave."""
        self._left: Tensor | None = None
        """The numbers of the rows that are still there; None before the first leaves."""

    def begin(self, criteria: Any) -> None:
        """A new batch is generated, with these stopping criteria."""
        ends = [criterion.eos_token_id for criterion in criteria if hasattr(criterion, "eos_token_id")]
        self._ends = torch.cat([end.flatten() for end in ends]) if ends else None
        self._left = None

    def forward(self, *positional: Any, **inputs: Any) -> Any:
        """The model's forward pass, for the rows that are still there."""
        if self._ends is None or torch.is_grad_enabled() or not self._continues(inputs):
            return self._own(*positional, **inputs)
        if positional or not _separable(inputs):
            self._ends = None  # all rows stay
            return self._own(*positional, **inputs)
        ids = inputs["input_ids"]
        self._leave(ids, inputs["past_key_values"])
        if self._left is None:
            return self._own(**inputs)
        output = self._own(**{name: self._of_rows(value, len(ids)) for name, value in inputs.items()})
        logits = output.logits.new_zeros((len(ids), *output.logits.shape[1:]))
        logits[self._left.to(logits.device)] = output.logits
        output.logits = logits
        return output

    def _continues(self, inputs: Mapping[str, Any]) -> bool:
        """Whether it is a step after the prompt; a prompt begins a batch."""
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        return isinstance(ids, Tensor) and ids.shape[1] == 1 and isinstance(cache, Cache) and cache.get_seq_length() > 0

    def _leave(self, ids: Tensor, cache: Cache) -> None:
        """Take the rows whose last token ends them out of the cache; the last row stays."""
        assert self._ends is not None
        left = torch.arange(len(ids), device=ids.device) if self._left is None else self._left
        stay = ~torch.isin(ids[left, 0], self._ends.to(ids.device))
        if stay.all() or not stay.any():
            return
        cache.batch_select_indices(torch.nonzero(stay).flatten())
        self._left = left[stay]

    def _of_rows(self, value: Any, rows: int) -> Any:
        whole = isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows
        return value[self._left] if whole else value


def _separable(inputs: Mapping[str, Any]) -> bool:
    """Whether rows can be taken out of these inputs."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    mask = inputs.get("attention_mask")
    plain = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
    positions = inputs.get("position_ids")
    by_row = positions is None or positions.dim() == 2
    layers = getattr(inputs["past_key_values"], "layers", ())
    kept = bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and by_row and kept and tensors.keys() <= set(INPUTS)
