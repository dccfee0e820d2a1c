"""A hash changes with what it is of, and with nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mlflow_ft.data import fingerprint
from mlflow_ft.data.fingerprint import digest, key, prompt_key
from mlflow_ft.hashes import row_hash
from mlflow_ft.rows import Encoded, Example


def example(question: str, answer: str) -> Example:
    return Example(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


ROW = example("one", "1")
ENCODED = Encoded(input_ids=(1, 2), labels=(-100, 2))
PAIR = Example(messages=ROW.messages[:1], chosen=ROW.messages[1:], rejected=({"role": "assistant", "content": "2"},))


def content_hash(row: Example, encoded: Encoded) -> bytes:
    parts = (encoded, encoded.rejected) if encoded.rejected else (encoded,)
    return fingerprint.content_hash(row, *((part.input_ids, part.labels) for part in parts))


CHANGES: dict[str, Callable[[], bytes]] = {
    "a turn": lambda: content_hash(example("one", "1 "), ENCODED),
    "a role": lambda: content_hash(Example(messages=({"role": "system", "content": "one"}, ROW.messages[1])), ENCODED),
    "tools": lambda: content_hash(dataclasses.replace(ROW, tools=({"name": "f"},)), ENCODED),
    "a label": lambda: content_hash(ROW, dataclasses.replace(ENCODED, labels=(1, 2))),
    "a token": lambda: content_hash(ROW, dataclasses.replace(ENCODED, input_ids=(9, 2))),
    "a token moved to the labels": lambda: content_hash(ROW, Encoded(input_ids=(1,), labels=(2, -100, 2))),
    "a rejected answer": lambda: content_hash(ROW, dataclasses.replace(ENCODED, rejected=ENCODED)),
    "a judgement": lambda: content_hash(dataclasses.replace(ROW, label=True), ENCODED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_content_changes_with(change: str) -> None:
    assert CHANGES[change]() != content_hash(ROW, ENCODED)


def test_the_content_does_not_change_with_the_order_of_keys() -> None:
    turned = Example(messages=tuple(dict(reversed(turn.items())) for turn in ROW.messages))
    assert content_hash(turned, ENCODED) == content_hash(ROW, ENCODED)
    assert len(content_hash(ROW, ENCODED)) == 16


def test_the_content_is_hashed_as_in_earlier_releases() -> None:
    """Registered models name their data by it."""
    assert content_hash(ROW, ENCODED).hex() == "93a525f6673bd2aad67fda0e435b231a"
    answered = dataclasses.replace(ENCODED, rejected=Encoded(input_ids=(1, 70_000), labels=(-100, 70_000)))
    assert content_hash(ROW, answered).hex() == "00e7b1cfcf232dd19e9b63b05c9175e1"


def test_a_judgement_and_its_opposite_are_two_rows() -> None:
    good, bad = (dataclasses.replace(ROW, label=label) for label in (True, False))
    assert content_hash(good, ENCODED) != content_hash(bad, ENCODED)


def test_the_digest_is_of_every_row_in_order_and_of_the_template_and_fits_mlflow() -> None:
    first, other = b"1" * 16, b"2" * 16
    total = digest([first, other], template="t")
    assert total == digest(iter([first, other]), template="t")
    others = [
        digest([other, first], template="t"),
        digest([first, other], template="t "),
        digest([first], template="t"),
    ]
    assert len({total, *others}) == 4
    assert len(total) == fingerprint.DIGEST_LENGTH <= 36


def test_text_that_utf_8_cannot_hold_has_a_hash() -> None:
    assert row_hash({"a": "\ud800"}) != row_hash({"a": "\ud801"})


def test_a_row_is_the_same_whatever_the_order_of_its_columns() -> None:
    assert row_hash({"a": "1", "b": [2]}) == row_hash({"b": [2], "a": "1"})
    assert row_hash({"a": "1"}) != row_hash({"a": 1})


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (example("one", "1"), example("one", "2"), True),
        (example("one", "1"), example("two", "1"), False),
        (PAIR, ROW, True),
        (dataclasses.replace(ROW, label=True), ROW, True),
        (Example(text="one"), Example(text="two"), False),
    ],
)
def test_rows_are_grouped_by_what_is_asked(left: Example, right: Example, *, same: bool) -> None:
    assert (prompt_key(left) == prompt_key(right)) is same


def test_a_key_fits_64_bits() -> None:
    assert all(0 <= key(value) < 2**64 for value in (None, "a", 1.5, ["x"]))


def parts(**change: Any) -> dict[str, Any]:
    return {"sources": [{"sha256": ["a"]}], "settings": {"max_length": 8}} | change


def test_the_fingerprint_changes_with_any_part() -> None:
    assert fingerprint.fingerprint(parts()) == fingerprint.fingerprint(parts())
    assert fingerprint.fingerprint(parts(settings={"max_length": 9})) != fingerprint.fingerprint(parts())
