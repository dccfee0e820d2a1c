"""What is written is read back, row by row and in slices, without being held in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft.data import store
from mlflow_ft.rows import Encoded, Example

ORIGIN = store.Origin(source=0, file=0, line=1, index=0, length=2, hash=b"h" * 16, key=1)
TURN = {"role": "assistant", "content": "é\n", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1]}}}]}
EXAMPLES = [
    Example(messages=({"role": "user", "content": "q"}, TURN), learned=(False, True), notes=("a note",)),
    Example(text="words"),
    Example(
        messages=({"role": "user", "content": "q"},), chosen=(TURN,), rejected=({"role": "assistant", "content": ""},)
    ),
    Example(messages=({"role": "user", "content": "q"}, TURN), label=False, tools=({"function": {"name": "f"}},)),
    Example(messages=({"role": "user", "content": "q"},), columns={"answer": 4, "steps": ["a"], "none": None}),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind)
def test_an_example_is_read_back(example: Example) -> None:
    assert store.from_json(store.to_json(example)) == example


def write(file: Path, rows: int) -> None:
    with store.Writer(file) as writer:
        for start in range(0, rows, store.BATCH):
            writer.write(
                [
                    store.record(
                        Example(text=f"row {number}"),
                        Encoded(input_ids=(number, number + 1), labels=(-100, number + 1), truncated=number % 2 == 0),
                        replace(ORIGIN, line=number),
                    )
                    for number in range(start, min(rows, start + store.BATCH))
                ]
            )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("store") / "rows.arrow"
    write(file, 2500)
    return store.read(file)


def test_rows_are_read_across_batches(table: Any) -> None:
    column = store.encoded(table)
    assert len(column) == 2500
    assert column[0] == column[-2500] == Encoded(input_ids=(0, 1), labels=(-100, 1), truncated=True)
    assert column[2499].input_ids == column[-1].input_ids == (2499, 2500)
    assert [row.input_ids[0] for row in column] == list(range(2500))
    assert [row.text for row in store.examples(table)[998:1002]] == ["row 998", "row 999", "row 1000", "row 1001"]
    with pytest.raises(IndexError):
        column[2500]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2499), max_size=20))
def test_some_rows_are_read_in_their_order(table: Any, indices: list[int]) -> None:
    column = store.places(table, ["here.jsonl"], np.array(indices, dtype=np.int64))
    assert [place.line for place in column] == indices
    assert [column[number].line for number in range(len(column))] == indices
    assert all(place.file == "here.jsonl" for place in column)


def test_the_trainers_rows_are_the_same(table: Any) -> None:
    chosen = store.encoded(table, np.array([7, 3])).dataset()
    assert chosen.column_names == ["input_ids", "labels"]
    assert chosen[0] == {"input_ids": [7, 8], "labels": [-100, 8]}
    assert chosen[1]["labels"] == [-100, 4]
    assert len(store.encoded(table).dataset()) == 2500


def test_both_answers_of_a_preference_are_kept(tmp_path: Path) -> None:
    rejected = Encoded(input_ids=(1, 3), labels=(-100, 3), way="w")
    row = Encoded(input_ids=(1, 2), labels=(-100, 2), way="w", rejected=rejected)
    with store.Writer(tmp_path / "rows.arrow") as writer:
        writer.write([store.record(EXAMPLES[2], row, ORIGIN)])
    table = store.read(tmp_path / "rows.arrow")
    assert store.encoded(table)[0] == row
    assert table.column("supervised").to_pylist() == [2]
    assert table.column("tokens").to_pylist() == [4]


def test_rows_in_memory_are_read_like_those_on_disk() -> None:
    rows = [Encoded(input_ids=(1, 2), labels=(-100, 2)), Encoded(input_ids=(3,), labels=(3,))]
    assert list(store.Column.of(rows)) == rows
    assert len(store.Column.of([]).dataset()) == 0


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for rows in (2 * store.BATCH, 8 * store.BATCH):
        write(tmp_path / f"{rows}.arrow", rows)
        column = store.encoded(store.read(tmp_path / f"{rows}.arrow"))
        tracemalloc.start()
        assert sum(len(row.input_ids) for row in column) == 2 * rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_taking_a_few_rows_copies_few(tmp_path: Path) -> None:
    """`pyarrow.Table.take` copies every text of the column, for each thousand rows that are read."""
    write(tmp_path / "rows.arrow", 10 * store.WINDOW)
    column = store.examples(store.read(tmp_path / "rows.arrow"), np.array([3, 5 * store.WINDOW]))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert len(list(column)) == 2
    finally:
        pa.set_memory_pool(before)
    texts = store.read(tmp_path / "rows.arrow").column("example").nbytes
    assert 0 < pool.max_memory() < texts / 4
