"""Which turns are learned: all of a row, the last, or each in a row of its own."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import split, turns
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Example

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM, TOOL = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
TALK = Example(messages=(SYSTEM, ASK, SAY, TOOL, SAY, ASK, SAY), tools=({"name": "f"},), notes=("n",))


def parts(example: Example, how: str) -> list[tuple[int, tuple[bool, ...] | None, int, bool]]:
    """Of each part its number of turns, what is learned of it, the turn, and whether it is the last part."""
    given: Any = {"turns": how}
    row_parts = turns.parts(example, DataSection(**given))
    for part in row_parts:
        assert part.example.messages == example.messages[: len(part.example.messages)]
        assert (part.example.tools, part.example.notes) == (example.tools, example.notes)
    return [(len(part.example.messages), part.example.learned, part.turn, part.final) for part in row_parts]


def learning(count: int) -> tuple[bool, ...]:
    """The last of so many turns."""
    return (*(False for _ in range(count - 1)), True)


def test_each_turn_ends_a_separate_row_and_the_last_turn_the_last_row() -> None:
    assert parts(TALK, "all") == [(7, None, 0, True)]
    assert parts(TALK, "last") == [(7, learning(7), 7, True)]
    assert parts(TALK, "each") == [
        (3, learning(3), 3, False),
        (5, learning(5), 5, False),
        (7, learning(7), 7, True),
    ]


def test_a_turn_that_is_not_to_be_learned_ends_no_row() -> None:
    example = Example(messages=(ASK, SAY, ASK, SAY, ASK, SAY), learned=(False, True, False, True, False, False))
    assert parts(example, "each") == [(2, learning(2), 2, False), (4, learning(4), 4, True)]
    assert parts(example, "last") == [(4, learning(4), 4, True)]
    nothing = Example(messages=(ASK, SAY), learned=(False, False))
    assert parts(nothing, "each") == parts(nothing, "last") == [(2, (False, False), 0, True)]


@pytest.mark.parametrize(
    "example",
    [
        Example(text="a"),
        Example(messages=(ASK,)),
        Example(messages=(ASK, SAY, ASK), chosen=(SAY,), rejected=(SAY,)),
        Example(messages=(ASK, SAY, ASK, SAY), learned=(False, False, False, True), label=True),
    ],
)
def test_other_rows_are_not_divided_and_a_training_on_them_says_so(example: Example) -> None:
    for how in ("all", "last", "each"):
        assert parts(example, how) == [(len(example.messages), example.learned, 0, True)]
    turns.check(example.kind, DataSection())
    with pytest.raises(DataError, match=f"these rows are of the kind {example.kind}"):
        turns.check(example.kind, DataSection(turns="each"))
    turns.check("conversation", DataSection(turns="each"))


def test_the_last_part_of_every_row() -> None:
    import numpy as np

    assert split.last_of_each(np.array([3, 3, 3, 5, 7, 7])).tolist() == [2, 3, 5]
    assert split.last_of_each(np.array([], dtype=int)).tolist() == []
