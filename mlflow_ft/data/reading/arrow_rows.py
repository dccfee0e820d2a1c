"""Reads the rows of Parquet and Arrow files; damage is detected before a value is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.reading.arrow_tables import Table
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.parsing import MAX_DEPTH, RowError
from mlflow_ft.errors import brief

if TYPE_CHECKING:
    import pyarrow

BATCH = 1000
PIECE = 2**20
FILE_MAGIC = b"ARROW1"
CONTINUES = b"\xff" * 4
END = CONTINUES + bytes(4)
"""What every message of a stream begins with, and what a stream ends with."""
Rows = Iterator[tuple[int, Any]]
"""Number and columns of every row; a RowError in place of a row whose values are damaged or not Python values."""

Batches = Iterator["pyarrow.RecordBatch | RowError"]


def parquet(file: Path) -> Rows:
    """Rows of a Parquet file.

    Raises:
        BrokenFile: it is not one, or it is damaged.
    """
    import pyarrow
    from pyarrow import parquet as reader

    try:
        # read in pieces: without a buffer, a whole row group, which may be the whole file, is in memory
        with reader.ParquetFile(file, buffer_size=PIECE, pre_buffer=False) as opened:
            check(opened.schema_arrow)
            yield from numbered(opened.iter_batches(batch_size=BATCH))
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # names that are not UTF-8 are ValueErrors
        raise _broken("Parquet", error) from error


def arrow(file: Path) -> Rows:
    """Rows of Arrow's file format (Feather), or of its stream format, in which `datasets` stores its tables.

    Raises:
        BrokenFile: it is not one, or it is damaged.
    """
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            is_file = source.read(len(FILE_MAGIC)) == FILE_MAGIC
            source.seek(0)
            yield from numbered(_of_file(source) if is_file else _of_streams(source))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _broken("Arrow", error) from error


def _of_file(source: pyarrow.MemoryMappedFile) -> Batches:
    from pyarrow import ipc

    opened = ipc.open_file(source)
    check(opened.schema)
    for index in range(opened.num_record_batches):
        yield opened.get_batch(index)


def _of_streams(source: pyarrow.MemoryMappedFile) -> Batches:
    """The batches of one stream, or of several one after another."""
    from pyarrow import ipc

    while source.tell() < source.size():
        begin = source.tell()
        marked = source.read(len(CONTINUES)) == CONTINUES  # streams from before 2019 are not
        source.seek(begin)
        opened = ipc.open_stream(source)
        check(opened.schema)
        yield from opened
        source.seek(source.tell() - len(END))
        if source.read(len(END)) != END and marked:
            yield RowError("the file ends without its end mark: it may be truncated, and rows may be missing here")


def _broken(kind: str, error: Exception) -> BrokenFile:
    return BrokenFile(f"not a readable {kind} file: {brief(error)}", hint="download or write the file again")


def check(schema: pyarrow.Schema) -> None:
    """Raise BrokenFile for two columns of one name, which would become one, and for nesting too deep for recursion."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise BrokenFile(f"it names a column twice: {', '.join(twice)}", hint="rename one of them")
    level = [field.type for field in schema]
    for _ in range(MAX_DEPTH):
        level = [kind.field(index).type for kind in level for index in range(kind.num_fields)]
    if level:
        raise BrokenFile(f"its columns are nested more than {MAX_DEPTH} levels deep")


def numbered(batches: Batches) -> Rows:
    """The rows of batches, each a `TableRow`, counted from 1."""
    number = 0
    for batch in batches:
        if isinstance(batch, RowError):
            number += 1
            yield number, batch
            continue
        table = Table(batch.schema)
        for start in range(0, batch.num_rows, BATCH):
            for values in _values(batch.slice(start, BATCH), table):
                number += 1
                yield number, values


def _values(batch: pyarrow.RecordBatch, table: Table) -> list[Any]:
    """The rows as Python values; where that fails, one by one, so that the good ones are read."""
    try:
        batch.validate(full=True)  # offsets that point anywhere would crash the process
        return list(table.rows(batch))
    except (ValueError, ArithmeticError, RecursionError) as error:
        if batch.num_rows > 1:
            return [_values(batch.slice(index, 1), table)[0] for index in range(batch.num_rows)]
        return [RowError(f"its values cannot be read: {brief(error)}")]
