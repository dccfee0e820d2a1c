"""Batches without padding: inside the model, the rows of a padded batch are laid end to end.

Nothing else changes: trainer, collator and loss give a padded batch and get the hidden states of a padded batch, where
those of padding are 0. The same rows are in the same optimizer step, with the same losses and gradients; only what is
computed for padding is left out. The layers get one row of all tokens, with positions that begin at 0 with every row,
and attention is computed row by row (`row_attention`). What several rows of a batch begin with is computed once
(`beginnings`).

Whether a model can do this is measured before it trains (`row_isolation`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlflow_ft.engine import row_attention
from mlflow_ft.engine.models import beginnings
from mlflow_ft.engine.models.wrapping import Wrapping

TOKENS = ("input_ids", "inputs_embeds")
NEEDED = ("attention_mask", "position_ids")
"""What the layers below the head must take."""
FURTHER_OUTPUTS = ("output_attentions", "output_hidden_states")
"""With these the model returns more than the last hidden states."""


class Unpadding(Wrapping):
    """Lays the rows of padded batches end to end while a model runs, between `on` and `off`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._config = getattr(self._layers, "config", None)
        self._takes = tuple(inspect.signature(self._layers.forward).parameters) if self._layers is not None else ()
        self.shares = True
        """Whether a beginning that rows have in common may be computed once."""
        self.shared = False
        """Whether one was; it cannot be where the layers get embeddings in place of tokens (learned prompts)."""
        self.tokens = 0
        """Tokens of the batches so far that were computed."""
        self.positions = 0
        """The same with padding."""

    @property
    def possible(self) -> bool:
        """Whether the layers below the head take what rows laid end to end need."""
        return all(name in self._takes for name in NEEDED)

    def _run(self, *positional: Any, **inputs: Any) -> Any:
        assert self._forward is not None
        inputs = dict(zip(self._takes, positional, strict=False)) | inputs
        inside = _inside(inputs, self._config)
        if inside is None:
            return self._forward(**inputs)
        plan = beginnings.plan(inputs["input_ids"], inside) if self._may_share(inputs) else None
        self.shared |= plan is not None
        if plan is None and bool(inside.all()):
            return self._forward(**inputs)
        computed = plan.computed if plan else inside
        lengths: list[int] = computed.sum(dim=1).tolist()
        self.tokens += sum(lengths)
        self.positions += inside.numel()
        positions = (inside.cumsum(dim=1) - 1)[computed][None]
        joined = {name: inputs[name][computed][None] for name in TOKENS if inputs.get(name) is not None}
        mask = torch.ones_like(positions) if plan else None  # with a mask, positions do not separate rows
        more = inputs | joined | {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        with row_attention.of_rows(lengths, plan.places if plan else None):
            output = self._forward(**more)
        return _padded(output, inside, torch.cat(plan.places) if plan else None)

    def _may_share(self, inputs: Mapping[str, Any]) -> bool:
        """Whether attention takes rows that have a beginning in common, and the inputs are tokens."""
        sdpa = getattr(self._config, "_attn_implementation", None) == row_attention.NAME
        return self.shares and sdpa and inputs.get("input_ids") is not None


def _padded(output: Any, inside: Tensor, places: Tensor | None) -> Any:
    """The output of a batch of rows laid end to end as that of the padded batch.

    `places` are where the tokens of the rows are in it; None if they are there in order.
    """

    def spread(values: Tensor) -> Tensor:
        return _spread(values if places is None else values[places], inside)

    padded = spread(output[0][0])
    if isinstance(output, tuple):
        return (padded, *output[1:])
    output["last_hidden_state"] = padded
    if (choices := output.get("router_logits")) is not None:  # of a mixture of experts; padding is masked there
        output["router_logits"] = tuple(spread(one).flatten(0, 1) for one in choices)
    return output


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Values of shape (tokens, size) where there are tokens, else 0: of shape (rows, length, size)."""
    spread = values.new_zeros(*inside.shape, values.shape[-1])
    spread[inside] = values
    return spread


def _inside(inputs: Mapping[str, Any], config: Any) -> Tensor | None:
    """Where there are tokens, bool of shape (rows, length); None for a batch that is left as it is.

    That is one with padding on the left (answers are generated), or one whose inputs say more about each token.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] < 2 or inputs.get("use_cache"):
        return None
    if any(inputs.get(name, getattr(config, name, False)) for name in FURTHER_OUTPUTS):
        return None
    known = {*TOKENS, "attention_mask"}
    if any(
        isinstance(value, Tensor) or name == "past_key_values"
        for name, value in inputs.items()
        if name not in known and value is not None
    ):
        return None
    inside = mask.bool()
    on_the_right = bool(inside[:, 0].all() & (inside[:, :-1] >= inside[:, 1:]).all())
    return inside if on_the_right else None
