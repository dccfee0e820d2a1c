"""Batches without padding: inside the model, the rows of a padded batch are laid end to end.

Nothing else changes: trainer, collator and loss give a padded batch and get the hidden states of a padded batch, where
those of padding are 0. The same rows are in the same optimizer step, with the same losses and gradients; only what is
computed for padding is left out. The layers get one row of all tokens, with positions that begin at 0 with every row,
and attention is computed row by row (`row_attention`).

Whether a model can do this is measured before it trains (`row_isolation`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlflow_ft.engine import row_attention
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
        self.tokens = 0
        """Tokens of the batches so far, without padding."""
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
        lengths = inside.sum(dim=1).tolist()
        self.tokens += sum(lengths)
        self.positions += inside.numel()
        positions = (inside.cumsum(dim=1) - 1)[inside][None]
        joined = {name: inputs[name][inside][None] for name in TOKENS if inputs.get(name) is not None}
        more = inputs | joined | {"attention_mask": None, "position_ids": positions, "use_cache": False}
        with row_attention.of_rows(lengths):
            output = self._forward(**more)
        hidden = output[0]
        padded = _spread(hidden[0], inside)
        if isinstance(output, tuple):
            return (padded, *output[1:])
        output["last_hidden_state"] = padded
        if (choices := output.get("router_logits")) is not None:  # of a mixture of experts; padding is masked there
            output["router_logits"] = tuple(_spread(one, inside).flatten(0, 1) for one in choices)
        return output


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Values of shape (tokens, size) where there are tokens, else 0: of shape (rows, length, size)."""
    spread = values.new_zeros(*inside.shape, values.shape[-1])
    spread[inside] = values
    return spread


def _inside(inputs: Mapping[str, Any], config: Any) -> Tensor | None:
    """Where there are tokens, bool of shape (rows, length); None for a batch that is left as it is.

    That is a batch without padding, one with padding on the left (answers are generated), or one whose inputs say more
    about each token.
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
    return inside if on_the_right and not bool(inside.all()) else None
