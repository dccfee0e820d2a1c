"""Rows out of one file, whatever its kind, in constant memory; a row that cannot be read does not hide the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.data import compressed, json_list
from mlflow_ft.data.parsing import MAX_ROW_BYTES, RowError, parse
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Place, Row

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
UTF_8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Unreadable(Place):
    """A row that is there but cannot be read, and why."""

    reason: str
    converting: bool = False
    """It was read, but it is not of its format."""


Read = Iterator[tuple[int, Any]]
"""Line and columns of every row; a RowError in place of the columns of a row that cannot be read."""


def read_file(file: Path, *, shown: str | None = None) -> Iterator[Row | Unreadable]:
    """Read a file by its suffix; `shown` is the name that messages give it.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, or broken as a whole.
    """
    name = shown or str(file)
    reader = READERS.get(compressed.suffix(file))
    if reader is None or not file.is_file():
        raise DataError(f"data {name!r} is of no known kind", hint=f"known: {', '.join(READERS)}, or a Hub id")
    if file.stat().st_size == 0:
        raise DataError(f"data file {name!r} is empty (0 bytes)", hint="write rows into it, or name another file")
    try:
        for line, values in reader(file):
            if isinstance(values, RowError):
                yield Unreadable(file=name, line=line, reason=str(values))
            elif not isinstance(values, dict):
                reason = f"a row must be an object, and this is {type(values).__name__}"
                yield Unreadable(file=name, line=line, reason=reason)
            else:
                yield Row(values=values, file=name, line=line)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def known(file: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return compressed.suffix(file) in READERS


def _lines(file: Path) -> Iterator[tuple[int, str | RowError]]:
    """Every line as text, with its number; lines end where a newline does, and nowhere else."""
    with compressed.binary(file) as stream:
        _refuse_utf_16(stream, file)
        number = 0
        while raw := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if number == 1:
                raw = raw.removeprefix(UTF_8_MARK)
            if len(raw) > MAX_ROW_BYTES:
                yield number, RowError(f"longer than {MAX_ROW_BYTES // 2**20} MiB, which is no row")
                _skip_line(stream, raw)
                continue
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, RowError(f"not UTF-8 text ({error.reason}); save the file as UTF-8")


def _skip_line(stream: io.BufferedReader, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(MAX_ROW_BYTES)


def _refuse_utf_16(stream: io.BufferedReader, file: Path) -> None:
    if stream.peek(2)[:2] in UTF_16:
        raise DataError(f"{file}:1: not UTF-8 text (it looks like UTF-16)", hint="save the file as UTF-8")


def _json_lines(file: Path) -> Read:
    for number, line in _lines(file):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            yield number, parse(line)


def _json_file(file: Path) -> Read:
    """A list of objects, JSON lines under the name .json, as many data sets have it, or objects one after another."""
    with compressed.binary(file) as stream:
        _refuse_utf_16(stream, file)
        start = stream.peek(2**16).removeprefix(UTF_8_MARK).lstrip()
    if start[:1] == b"[":
        yield from json_list.read(file)
    elif start[:1] == b"{" and b"\n" in start and isinstance(parse(_first_line(start)), RowError):
        yield from json_list.read(file, brackets=False)
    else:
        yield from _json_lines(file)


def _first_line(start: bytes) -> str:
    return start.partition(b"\n")[0].decode("utf-8", "replace")


def _text_lines(file: Path) -> Read:
    for number, line in _lines(file):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _csv_file(file: Path) -> Read:
    csv.field_size_limit(2**24)
    with compressed.binary(file) as stream:
        _refuse_utf_16(stream, file)
        first = stream.peek(2**16).removeprefix(UTF_8_MARK).splitlines()[:1] or [b""]
        # bytes that are no UTF-8 pass as lone surrogates, so that the row they stand in can be named
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=_delimiter(file, first[0]), strict=True)
        header: list[str] = []
        line = 1  # on which the next row begins; a row ends on a later line where a quoted field holds line breaks
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield line, RowError(f"malformed CSV: {error}")
                fields = []
            if fields is None:
                return
            if header and fields:
                yield line, _csv_row(header, fields)
            elif fields:
                header = _csv_header(fields, f"{file}:{line}")
            line = reader.line_num + 1


def _delimiter(file: Path, header: bytes) -> str:
    """A tab in .tsv files; where commas are decimal points, spreadsheets write semicolons."""
    if compressed.suffix(file) == ".tsv":
        return "\t"
    return ";" if b";" in header and b"," not in header else ","


def _csv_header(fields: list[str], place: str) -> list[str]:
    if twice := sorted({name for name in fields if fields.count(name) > 1}):
        raise DataError(f"{place}: the header names a column twice: {', '.join(twice)}", hint="rename one of them")
    return fields


def _csv_row(header: list[str], fields: list[str]) -> dict[str, Any] | RowError:
    if len(fields) != len(header):
        return RowError(
            f"the row has another number of fields than the header ({len(fields)}, not {len(header)}); "
            "put fields that hold commas or line breaks in double quotes"
        )
    if any("\udc80" <= letter <= "\udcff" for field in fields if not field.isascii() for letter in field):
        return RowError("not UTF-8 text; save the file as UTF-8")
    return dict(zip(header, fields, strict=True))


def _parquet_file(file: Path) -> Read:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            yield from _numbered(opened.iter_batches(batch_size=1000))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _arrow_file(file: Path) -> Read:
    """Arrow's file format (Feather), or its stream format, in which `datasets` keeps its tables."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(file)) as source:
        try:
            try:
                opened = ipc.open_file(source)
                batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                batches = iter(ipc.open_stream(source))
            yield from _numbered(batches)
        except pyarrow.ArrowException as error:
            raise DataError(f"{file} is no Arrow file that can be read: {str(error).splitlines()[0]}") from error


def _numbered(batches: Iterator[Any]) -> Read:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1000):
            for values in batch.slice(start, 1000).to_pylist():
                number += 1
                yield number, values


READERS: Mapping[str, Callable[[Path], Read]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _csv_file,
    ".tsv": _csv_file,
    ".parquet": _parquet_file,
    ".arrow": _arrow_file,
    ".feather": _arrow_file,
    ".txt": _text_lines,
}
"""By suffix; those of text may be compressed as well (.gz, .zst, .bz2, .xz)."""
