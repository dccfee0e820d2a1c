"""Rows out of one file, whatever its kind, in constant memory; a row that cannot be read does not hide the others."""

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
"""Bytes of a first line that say whether a .json file holds lines."""


@dataclass(frozen=True, kw_only=True)
class Unreadable(Place):
    """A row that is there but cannot be read, and why."""

    reason: str
    converting: bool = False
    """It was read, but it is not of its format."""
    value: Any = field(default=None, repr=False, compare=False)
    """What stands there in place of an object, where it is JSON: a list of turns may be meant as a conversation."""


Read = Iterator[tuple[int, Any]]
"""Line and columns of every row; a RowError in place of the columns of a row that cannot be read."""


def read_file(file: Path, *, shown: str | None = None, inside: Sequence[str] = ()) -> Iterator[Row | Unreadable]:
    """Read a file by its suffix; `shown` is the name that messages give it.

    Of a .json file whose rows lie in a list within an object, `inside` are the keys under which that lies.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, or broken as a whole.
    """
    name = shown or str(file)
    check_kind(file, name)
    whole = 0
    try:
        if file.stat().st_size == 0:
            raise DataError(f"data file {name!r} is empty (0 bytes)", hint="write rows into it, or name another file")
        for line, values in json_list.read_inside(file, inside) if inside else READERS[compressed.suffix(file)](file):
            whole += isinstance(values, dict)
            if isinstance(values, RowError):
                yield Unreadable(file=name, line=line, reason=str(values))
            elif not isinstance(values, dict):
                reason = f"a row must be an object, and this is {_named(values)}"
                yield Unreadable(file=name, line=line, reason=reason, value=values)
            else:
                yield Row(values=values, file=name, line=line)
    except BrokenFile as error:
        place = name if error.line is None else f"{name}:{error.line}"
        before = f"; {whole:,} whole row{'s' * (whole != 1)} come{'s' * (whole == 1)} before it" if whole else ""
        raise DataError(f"{place}: {error.reason}{before}", hint=error.hint) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _named(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a number"


def check_kind(file: Path, name: str) -> None:
    """Raise DataError where it is no file, or no reader knows its kind."""
    if not known(file) or not _is_file(file):
        raise DataError(f"data {name!r} is of no known kind", hint=f"known: {', '.join(READERS)}, or a Hub id")


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # nobody may look into its folder
        return False


def known(file: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return compressed.suffix(file) in READERS


def is_object(file: Path) -> bool:
    """Whether a .json file begins with an object, in which its rows may lie."""
    return compressed.suffix(file) == ".json" and first_letter(file) == "{"


def first_letter(file: Path) -> str:
    """The first letter of a text; "" where there is none, or the file cannot be read."""
    try:
        with compressed.text(file) as stream:
            return _first_line(stream).lstrip()[:1]
    except (BrokenFile, OSError):
        return ""


def has_lines(file: Path) -> bool:
    """Whether a file of JSON holds a value a line, and not one value alone."""
    with compressed.text(file) as stream:
        first, second = _first_line(stream), _first_line(stream)
    if _is_open(first) and not isinstance(parse(second), dict):
        return False
    is_list = first.lstrip().startswith("[")
    return is_list if compressed.suffix(file) != ".json" and is_list else bool(second.strip()) and not is_list


def _lines(file: Path) -> Iterator[tuple[int, str | RowError]]:
    """Every line as text, with its number; lines end where a newline does, and nowhere else."""
    with compressed.text(file) as stream:
        number = 0
        while raw := stream.readline(parsing.MAX_ROW_BYTES + 1):
            number += 1
            if number == 1:
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
    """JSON lines; or, under the same name, a list or objects that go on over several lines."""
    with compressed.text(file) as stream:
        start, following = _first_line(stream), _first_line(stream)
    letter = start.lstrip()[:1]
    if letter and letter in "[{" and _is_open(start) and not isinstance(parse(following), dict):
        yield from json_list.read(file, brackets=letter == "[")
    else:
        yield from _each_line(file)


def _each_line(file: Path) -> Read:
    for number, line in _lines(file):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            yield number, parse(line)


def _json_file(file: Path) -> Read:
    """A list of objects, JSON lines under the name .json, as many data sets have it, or objects one after another."""
    with compressed.text(file) as stream:
        start = _first_line(stream)
    letter = start.lstrip()[:1]
    if letter == "[":
        yield from json_list.read(file)
    elif letter == "{" and _goes_on(start):
        yield from json_list.read(file, brackets=False)
    else:
        yield from _each_line(file)


def _first_line(stream: io.BufferedReader) -> str:
    """The first line that is not blank, or its beginning."""
    raw = stream.readline(LOOKED_AT).removeprefix(UTF_8_MARK)
    while raw.isspace():
        raw = stream.readline(LOOKED_AT)
    return raw.decode("utf-8", "replace")


def _goes_on(line: str) -> bool:
    """Whether the object that begins on a line ends on another one, or the next begins behind it."""
    text = line.strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return _is_open(line)
    return text[end:].lstrip().startswith("{")


def _is_open(line: str) -> bool:
    """Whether what begins on a line ends on another one."""
    text = line.strip()
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return line.endswith("\n") and error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def _text_lines(file: Path) -> Read:
    for number, line in _lines(file):
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
"""By suffix; those of text may be compressed as well (.gz, .zst, .bz2, .xz)."""
