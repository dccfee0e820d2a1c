"""The prepared rows on disk: written in one pass and read through a memory map, so that memory use stays constant."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from mlflow_ft.data.fingerprint import content_hash
from mlflow_ft.rows import Encoded, Example, Place
from mlflow_ft.values import StoredRows

if TYPE_CHECKING:
    import numpy
    import pyarrow
    from datasets import Dataset

T = TypeVar("T")
BATCH = 1000
WINDOW = 8 * BATCH
"""Rows whose texts and tokens are copied at most when some of them are taken."""
TRAINED = ("input_ids", "labels")
"""The columns that a trainer of conversations needs."""
FIELDS = tuple(field.name for field in fields(Example))
_JSON = json.JSONEncoder(ensure_ascii=False, default=str)


def schema() -> pyarrow.Schema:
    """The columns of the store, one record per row."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    columns = {
        "source": pa.int32(),
        "file": pa.int32(),
        "line": pa.int64(),
        "index": pa.int64(),
        "length": pa.int32(),
        "hash": pa.binary(16),
        "key": pa.uint64(),
        "prompt_key": pa.uint64(),
        "text_key": pa.uint64(),
        "content": pa.binary(16),
        "example": pa.string(),
        "input_ids": ids,
        "labels": ids,
        "truncated": pa.bool_(),
        "way": pa.string(),
        "rejected_ids": ids,
        "rejected_labels": ids,
        "tokens": pa.int32(),
        "supervised": pa.int32(),
        "turn": pa.int32(),
        "unwritten": pa.int32(),
    }
    return pa.schema(list(columns.items()))


class Writer:
    """Writes rows in batches to an Arrow stream."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self._schema = schema()
        self._sink = pa.OSFile(str(file), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self.write_batch(batch(rows, self._schema))

    def write_batch(self, rows: pyarrow.RecordBatch) -> None:
        self._stream.write_batch(rows)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._sink.close()


def batch(rows: Sequence[dict[str, Any]], wanted: pyarrow.Schema) -> pyarrow.RecordBatch:
    """Rows as one Arrow batch."""
    import pyarrow as pa

    columns = []
    for field in wanted:
        values = [row[field.name] for row in rows]
        columns.append(_token_lists(values) if pa.types.is_list(field.type) else pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def _token_lists(values: Sequence[array[int] | None]) -> pyarrow.Array:
    """Lists of numbers as one array, copied in one piece each."""
    import pyarrow as pa

    flat, offsets = array("i"), array("i", [0])
    for value in values:
        flat += value or array("i")
        offsets.append(len(flat))
    missing = pa.array([value is None for value in values], pa.bool_())
    begins, numbers = (pa.Array.from_buffers(pa.int32(), len(x), [None, pa.py_buffer(x)]) for x in (offsets, flat))
    return pa.ListArray.from_arrays(begins, numbers, mask=missing)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a stored row comes from, and what it is recognised and grouped by."""

    source: int
    file: int
    line: int
    index: int
    length: int
    hash: bytes
    key: int
    """Of the prompt as it is, or of the value of `data.split_by`."""
    prompt_key: int = 0
    """Of the words of the prompt, without the system prompt; `key` where they are few."""
    text_key: int = 0
    """Of the words of all turns but the system prompt; `key` where there are none."""
    turn: int = 0
    """The learned turn, from 1, where the row is a part of a conversation, else 0."""
    unwritten: int = 0
    """The number of learned turns whose thoughts the template leaves out."""


def record(example: Example, encoded: Encoded, origin: Origin) -> dict[str, Any]:
    """One row as the store keeps it."""
    rejected = encoded.rejected
    parts = (encoded, rejected) if rejected else (encoded,)
    answers = [(array("i", part.input_ids), array("i", part.labels)) for part in parts]
    chosen, other = answers[0], answers[1] if rejected else (None, None)
    return {
        **vars(origin),
        "content": content_hash(example, *answers),
        "example": to_json(example),
        "input_ids": chosen[0],
        "labels": chosen[1],
        "truncated": any(part.truncated for part in parts),
        "way": encoded.way,
        "rejected_ids": other[0],
        "rejected_labels": other[1],
        "tokens": sum(len(part.input_ids) for part in parts),
        "supervised": sum(part.supervised for part in parts),
    }


def to_json(example: Example) -> str:
    """An example as one JSON object, without the fields that have their defaults."""
    values = ((name, getattr(example, name)) for name in FIELDS)
    return _JSON.encode({name: value for name, value in values if value not in (None, (), {})})


def from_json(text: str) -> Example:
    """The example that `to_json` wrote."""
    values = json.loads(text)
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Example(**(values | tuples))


class Column(StoredRows[T]):
    """Some rows of a store as values of one kind, each made on access.

    >>> Column.of([Encoded(input_ids=(1, 2), labels=(-100, 2))])[0].supervised
    1
    """

    def __init__(
        self,
        table: pyarrow.Table,
        make: Callable[[dict[str, Any]], T],
        names: Sequence[str],
        indices: numpy.ndarray[Any, Any] | None = None,
    ) -> None:
        self._table = table
        self._own = table.select(list(names))
        self._make = make
        self._indices = indices

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> Column[Encoded]:
        """Encoded rows that are already in memory."""
        import pyarrow as pa

        values = [
            record(
                Example(),
                row,
                Origin(source=0, file=0, line=0, index=0, length=len(row.input_ids), hash=b"\0" * 16, key=0),
            )
            for row in rows
        ]
        return encoded(pa.Table.from_batches([batch(values, schema())]))

    def __len__(self) -> int:
        return int(self._table.num_rows) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        at = place if self._indices is None else int(self._indices[place])
        return next(self._made(self._own.slice(at, 1)))

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BATCH):
            yield from self._made(self._part(start, BATCH))

    def _part(self, start: int, count: int) -> pyarrow.Table:
        if self._indices is None:
            return self._own.slice(start, count)
        return take(self._own, self._indices[start : start + count])

    def _made(self, table: pyarrow.Table) -> Iterator[T]:
        return (self._make(row) for row in table.to_pylist())

    def dataset(self, names: Sequence[str] = TRAINED, *, fingerprint: str = "mlflow-ft") -> Dataset:
        from datasets import Dataset
        from datasets.table import InMemoryTable

        # with a fingerprint, `datasets` need not hash the whole table
        all_rows = Dataset(InMemoryTable(self._table.select(list(names))), fingerprint=fingerprint)
        return all_rows if self._indices is None else all_rows.select(self._indices)


def read(file: Path) -> pyarrow.Table:
    """The rows of a store, through a memory map: nothing is read before it is accessed."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def take(table: pyarrow.Table, indices: numpy.ndarray[Any, Any]) -> pyarrow.Table:
    """Some rows, in the order of their numbers.

    `pyarrow.Table.take` copies whole columns of texts and lists, however few rows it takes.
    """
    import numpy as np
    import pyarrow as pa

    windows = np.split(indices, np.flatnonzero(np.diff(indices // WINDOW)) + 1)
    parts = [table.slice(rows[0] // WINDOW * WINDOW, WINDOW).take(rows % WINDOW) for rows in windows if len(rows)]
    return pa.concat_tables(parts) if parts else table.slice(0, 0)


def examples(table: pyarrow.Table, indices: numpy.ndarray[Any, Any] | None = None) -> Column[Example]:
    """The rows as examples."""
    return Column(table, lambda row: from_json(row["example"]), ["example"], indices)


def encoded(table: pyarrow.Table, indices: numpy.ndarray[Any, Any] | None = None) -> Column[Encoded]:
    """The rows as tokens and labels."""
    names = ["input_ids", "labels", "truncated", "way", "rejected_ids", "rejected_labels"]
    return Column(table, _encoded, names, indices)


def places(table: pyarrow.Table, files: Sequence[str], indices: numpy.ndarray[Any, Any] | None = None) -> Column[Place]:
    """Where the rows are in their files."""
    return Column(table, lambda row: Place(file=files[row["file"]], line=row["line"]), ["file", "line"], indices)


def _encoded(row: dict[str, Any]) -> Encoded:
    rejected = None
    if row["rejected_ids"] is not None:
        rejected = Encoded(input_ids=tuple(row["rejected_ids"]), labels=tuple(row["rejected_labels"]), way=row["way"])
    return Encoded(
        input_ids=tuple(row["input_ids"]),
        labels=tuple(row["labels"]),
        truncated=row["truncated"],
        way=row["way"],
        rejected=rejected,
    )
