"""Which turns of a conversation are learned, and in which rows (`data.turns`): all, the last, or each in its own row.

    user 1, assistant 2, user 3, assistant 4

    all     one row:   1 [2] 3 [4]
    last    one row:   1  2  3 [4]
    each    two rows:  1 [2]   and   1  2  3 [4]

A template that drops the thoughts of earlier turns keeps those of the last one: with `each`, every turn is learned as
the model would generate it, after the history that a server would render.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlflow_ft.config.schema import DataSection
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Example, Kind


@dataclass(frozen=True, kw_only=True)
class Part:
    """One unit of learning: a whole row, or the part of its conversation that ends with one turn."""

    example: Example
    turn: int = 0
    """The learned turn, from 1; 0 for a row as it is."""
    final: bool = True
    """Whether it is the last one of its row."""


def parts(example: Example, settings: DataSection) -> list[Part]:
    """The parts of a row, in order; for anything but a conversation, the row itself."""
    turns = [turn for turn, is_learned in enumerate(_learned(example)) if is_learned]
    if settings.turns == "all" or example.kind != "conversation" or not turns:
        return [Part(example=example)]
    kept = turns[-1:] if settings.turns == "last" else turns
    return [Part(example=_ending_with(turn, example), turn=turn + 1, final=turn == kept[-1]) for turn in kept]


def _learned(example: Example) -> tuple[bool, ...]:
    return example.conversations[0][1] if example.kind == "conversation" else ()


def _ending_with(turn: int, example: Example) -> Example:
    learned = tuple(place == turn for place in range(turn + 1))
    return replace(example, messages=example.messages[: turn + 1], learned=learned)


def check(kind: Kind, settings: DataSection) -> None:
    """Raise DataError where turns are chosen in rows that are not conversations to imitate."""
    if settings.turns != "all" and kind != "conversation":
        raise DataError(
            f"data.turns {settings.turns} chooses turns of conversations, but these rows are of the kind {kind}",
            hint="leave data.turns out: only the answers of such rows are learned",
        )
