"""Which turns of a row are learned: what the turns say themselves, and columns that say it of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft import Message
from mlflow_ft.builtin.formats.turns import LEARN_KEYS, truth_of
from mlflow_ft.builtin.formats.values import from_json, shown

WEIGHT_COLUMNS = (
    *("weights", "turn_weights", "message_weights", "loss_weights", "train_on_turns", "loss_masks", "train_mask"),
    *LEARN_KEYS,
)
"""Columns with a list that says which of the turns are learned."""
ROW_COLUMNS = ("train", "trainable", "weight", "loss_weight", "loss_mask")
"""Columns in which a single value speaks of the whole row."""


def to_learn(messages: Sequence[Message], wishes: Sequence[bool | None]) -> list[bool]:
    """For each turn, whether it is learned: assistant turns are, unless the turn says otherwise."""
    return [
        message["role"] == "assistant" and wish is not False for message, wish in zip(messages, wishes, strict=True)
    ]


def weight_column(values: Mapping[str, Any]) -> str | None:
    """The row's column with a list that says which of its turns are learned."""
    return next((name for name in WEIGHT_COLUMNS if isinstance(from_json(values.get(name)), list)), None)


def refuse_unlearned(values: Mapping[str, Any]) -> None:
    """Raise ValueError where the row says that nothing of it is learned."""
    for column in ROW_COLUMNS:
        value = values.get(column)
        plain = value.strip().lower() if isinstance(value, str) else value
        if isinstance(plain, str | int | float) and plain in (0, "0", "false"):
            raise ValueError(
                f"`{column}` is {shown(value)}, so nothing of the row would be learned; leave the row out, or rename "
                "the column if it means something else"
            )


def weighted(
    values: Mapping[str, Any], messages: Sequence[Message], wishes: Sequence[bool | None], *, answer: int = 0
) -> Sequence[bool | None]:
    """The turns' own wishes to be learned, with those of a column of weights: one per turn, or one per answer.

    It may be about the turns from `answer` on only, before which the prompt ends.
    """
    column = weight_column(values)
    if column is None:
        return wishes
    weights = from_json(values[column])
    fitting = [places for places in _covered(messages, answer) if len(places) == len(weights)]
    if not fitting:
        raise ValueError(f"`{column}` has {len(weights)} weights for {len(messages)} turns")
    readings = [_combined(column, dict(zip(places, weights, strict=True)), wishes) for places in fitting]
    learned = to_learn(messages, readings[0])
    if any(to_learn(messages, reading) != learned for reading in readings):
        raise ValueError(f"`{column}` has {len(weights)} weights, which fit in several ways: give one for every turn")
    return readings[0]


def _covered(messages: Sequence[Message], answer: int) -> Iterator[Sequence[int]]:
    """The places of the turns that weights may be about."""
    for places in (range(len(messages)), range(answer, len(messages))):
        yield [place for place in places if messages[place]["role"] == "assistant"]
        yield places


def _combined(column: str, weights: Mapping[int, Any], wishes: Sequence[bool | None]) -> list[bool | None]:
    combined = list(wishes)
    for place, weight in weights.items():
        wish = None if weight is None else truth_of(weight, f"`{column}` has {{}} for turn {place + 1}")
        if None not in (wish, combined[place]) and wish != combined[place]:
            raise ValueError(f"`{column}` and turn {place + 1} disagree on whether the turn is learned")
        combined[place] = wish if combined[place] is None else combined[place]
    return combined
