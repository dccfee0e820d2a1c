"""Reads the rows of one file of any kind in constant memory; an unreadable row does not hide the others."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_ft.data.reading import arrow_rows, compressed, csv_rows, json_list, parsing
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.parsing import NO_ROW, NOT_UTF_8, RowError, parse
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Place, Row

UTF_8_MARK = b"\xef\xbb\xbf"
LOOKED_AT = 2**16
"""Bytes of the first line that decide whether a .json file holds lines."""


@dataclass(frozen=True, kw_only=True)
class Unreadable(Place):
    """A row that cannot be read, and why."""

    reason: str
    converting: bool = False
    """It was read, but does not have the format."""
    value: Any = field(default=None, repr=False, compare=False)
    """The JSON value where it is not an object: a list of turns may be a conversation."""


Read = Iterator[tuple[int, Any]]
"""Line and columns of every row; a RowError in place of the columns of a row that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a file with a row on each line: the lines that begin in it."""

    begin: int
    """In bytes; a line begins here."""
    end: int


def read_file(
    file: Path, *, shown: str | None = None, inside: Sequence[str] = (), span: Span | None = None
) -> Iterator[Row | Unreadable]:
    """Read a file by its suffix; `shown` is its name in messages.

    For a .json file whose rows are in a list within an object, `inside` are the keys of that list. Of a file with a row
    on each line, `span` is the part to read, whose first line then has the number 1.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, or broken as a whole.
    """
    name = shown or str(file)
    check_kind(file, name)
    whole = 0
    try:
        if file.stat().st_size == 0:
            raise DataError(f"data file {name!r} is empty (0 bytes)", hint="add rows to it, or name another file")
        for line, values in _read(file, inside, span):
            whole += isinstance(values, dict)
            if isinstance(values, RowError):
                yield Unreadable(file=name, line=line, reason=str(values))
            elif not isinstance(values, dict):
                reason = f"a row must be an object, but this is {_named(values)}"
                yield Unreadable(file=name, line=line, reason=reason, value=values)
            else:
                yield Row(values=values, file=name, line=line)
    except BrokenFile as error:
        place = name if error.line is None else f"{name}:{error.line}"
        before = f"; {whole:,} complete row{'s' * (whole != 1)} come{'s' * (whole == 1)} before it" if whole else ""
        raise DataError(f"{place}: {error.reason}{before}", hint=error.hint) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _read(file: Path, inside: Sequence[str], span: Span | None) -> Read:
    if span is not None:
        return _text_lines(file, span) if compressed.suffix(file) == ".txt" else _each_line(file, span)
    return json_list.read_inside(file, inside) if inside else READERS[compressed.suffix(file)](file)


def spans(file: Path, size: int) -> list[Span]:
    """The file in parts of at least so many bytes; [] if it has to be read from its beginning to its end.

    It can be read in parts if it has a row on each line, and is not compressed.
    """
    suffix, length = compressed.suffix(file), file.stat().st_size
    lists: Mapping[str, Callable[[Path], bool | None]] = {
        ".jsonl": _list_in_lines,
        ".ndjson": _list_in_lines,
        ".json": _list_in_file,
        ".txt": lambda _: None,
    }
    try:
        if suffix != file.suffix.lower() or suffix not in lists or length <= size or lists[suffix](file) is not None:
            return []
    except BrokenFile:  # told when the file is read
        return []
    begins = [0]
    with compressed.text(file) as stream:
        while begins[-1] + size < length:
            stream.seek(begins[-1] + size - 1)
            stream.readline()
            begins.append(stream.tell())
    ends = [*begins[1:], length]
    return [Span(begin=begin, end=end) for begin, end in zip(begins, ends, strict=True) if begin < end]


def count(file: Path, span: Span) -> tuple[int, int]:
    """How many rows, readable or not, and how many lines begin in a part of a file."""
    rows = lines = 0
    for _, line in _lines(file, span):
        lines += 1
        rows += isinstance(line, RowError) or bool(line.strip())
    return rows, lines


def _named(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a number"


def check_kind(file: Path, name: str) -> None:
    """Raise DataError where it is not a file, or no reader knows its kind."""
    if not known(file) or not _is_file(file):
        raise DataError(f"data {name!r} is of an unknown kind", hint=f"known: {', '.join(READERS)}, or a Hub id")


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # its folder may not be read
        return False


def known(file: Path) -> bool:
    """Whether a file's suffix is one that holds rows."""
    return compressed.suffix(file) in READERS


def is_object(file: Path) -> bool:
    """Whether a .json file begins with an object, which may contain its rows."""
    return compressed.suffix(file) == ".json" and first_letter(file) == "{"


def first_letter(file: Path) -> str:
    """The first letter of a text; "" where there is none, or the file cannot be read."""
    try:
        with compressed.text(file) as stream:
            return _first_line(stream).lstrip()[:1]
    except (BrokenFile, OSError):
        return ""


def has_lines(file: Path) -> bool:
    """Whether a JSON file holds one value per line, and not a single value."""
    with compressed.text(file) as stream:
        first, second = _first_line(stream), _first_line(stream)
    if _is_open(first) and not isinstance(parse(second), dict):
        return False
    is_list = first.lstrip().startswith("[")
    return is_list if compressed.suffix(file) != ".json" and is_list else bool(second.strip()) and not is_list


def _lines(file: Path, span: Span | None = None) -> Iterator[tuple[int, str | RowError]]:
    """Every line as text, with its number; only a newline ends a line."""
    with compressed.text(file) as stream:
        number = 0
        if span is not None:
            stream.seek(span.begin)
        while (span is None or stream.tell() < span.end) and (raw := stream.readline(parsing.MAX_ROW_BYTES + 1)):
            number += 1
            if number == 1 and not (span and span.begin):
                raw = raw.removeprefix(UTF_8_MARK)
            if len(raw) > parsing.MAX_ROW_BYTES:
                yield number, RowError(NO_ROW.format(size=parsing.MAX_ROW_BYTES))
                _skip_line(stream, raw)
                continue
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError:
                yield number, RowError(NOT_UTF_8)


def _skip_line(stream: io.BufferedReader, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(LOOKED_AT)


def _json_lines(file: Path) -> Read:
    """JSON lines; or, under the same suffix, a list or objects that span several lines."""
    brackets = _list_in_lines(file)
    yield from _each_line(file) if brackets is None else json_list.read(file, brackets=brackets)


def _list_in_lines(file: Path) -> bool | None:
    """Whether a file of this suffix is a list in brackets, or objects without them; None if each line is a value."""
    with compressed.text(file) as stream:
        start, following = _first_line(stream), _first_line(stream)
    letter = start.lstrip()[:1]
    if letter and letter in "[{" and _is_open(start) and not isinstance(parse(following), dict):
        return letter == "["
    return None


def _each_line(file: Path, span: Span | None = None) -> Read:
    for number, line in _lines(file, span):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            yield number, parse(line)


def _json_file(file: Path) -> Read:
    """A list of objects, JSON lines in a .json file, as many data sets have them, or consecutive objects."""
    brackets = _list_in_file(file)
    yield from _each_line(file) if brackets is None else json_list.read(file, brackets=brackets)


def _list_in_file(file: Path) -> bool | None:
    """As `_list_in_lines`."""
    with compressed.text(file) as stream:
        start = _first_line(stream)
    letter = start.lstrip()[:1]
    if letter == "[":
        return True
    return False if letter == "{" and _goes_on(start) else None


def _first_line(stream: io.BufferedReader) -> str:
    """The first line that is not blank, or its beginning."""
    raw = stream.readline(LOOKED_AT).removeprefix(UTF_8_MARK)
    while raw.isspace():
        raw = stream.readline(LOOKED_AT)
    return raw.decode("utf-8", "replace")


def _goes_on(line: str) -> bool:
    """Whether the object that begins on a line ends on a later one, or another object follows it."""
    text = line.strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return _is_open(line)
    return text[end:].lstrip().startswith("{")


def _is_open(line: str) -> bool:
    """Whether the value that begins on a line ends on a later one."""
    text = line.strip()
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return line.endswith("\n") and error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def _text_lines(file: Path, span: Span | None = None) -> Read:
    for number, line in _lines(file, span):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            yield number, {"text": line.rstrip("\r\n")}


READERS: Mapping[str, Callable[[Path], Read]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": csv_rows.read,
    ".tsv": csv_rows.read,
    ".parquet": arrow_rows.parquet,
    ".arrow": arrow_rows.arrow,
    ".feather": arrow_rows.arrow,
    ".txt": _text_lines,
}
"""By suffix; text formats may also be compressed (.gz, .zst, .bz2, .xz)."""
