"""Reads the rows of CSV files; a malformed row is reported and the others are read, as far as they can be separated."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_ft.data.reading import compressed, parsing
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.parsing import NO_ROW, NOT_UTF_8, RowError

MARK = b"\xef\xbb\xbf"
QUOTED = re.compile(rb'"[^"]*"')
NAMED = re.compile(rb'"?sep=([!#-~\t])"?[\r\n]', re.IGNORECASE)
"""A line before the header, with which Excel names the character between the fields."""
OTHERS = (";", "\t", "|")


def read(file: Path) -> Iterator[tuple[int, Any]]:
    """Line and columns of every row; a RowError in place of a row that cannot be read.

    Raises:
        BrokenFile: the header cannot be read, or a quote is not closed: what follows may be rows or part of one.
    """
    csv.field_size_limit(parsing.MAX_ROW_BYTES)
    with compressed.text(file) as stream:
        separator = "\t" if compressed.suffix(file) == ".tsv" else _delimiter(stream)
        lines = _Lines(stream)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header: list[str] = []
        while True:
            lines.begin()
            try:
                fields = next(reader, None)
            except (csv.Error, RowError) as error:
                yield lines.first, _malformed(error, lines, header)
                continue
            if fields is None:
                return
            if header and fields:
                yield lines.first, _row(header, fields)
            elif fields and separator.join(fields).lower() != f"sep={separator}":
                header = _header(fields, lines.first)


def delimiter(file: Path) -> str:
    """The character between the fields of a file."""
    with compressed.text(file) as stream:
        return "\t" if compressed.suffix(file) == ".tsv" else _delimiter(stream)


def _delimiter(stream: io.BufferedReader) -> str:
    """The character that Excel's first line names, or the one in a header without commas.

    Where commas are decimal points, spreadsheets write semicolons.
    """
    start = stream.peek(2**16).removeprefix(MARK).lstrip(b"\r\n")
    if named := NAMED.match(start):
        return named[1].decode()
    names = QUOTED.sub(b"", (start.splitlines() or [b""])[0])
    return next((other for other in OTHERS if other.encode() in names and b"," not in names), ",")


class _Lines:
    """The lines of a text, counted for each row; a line ends with a newline, a carriage return, or both."""

    def __init__(self, stream: io.BufferedReader) -> None:
        # bytes that are not UTF-8 pass as lone surrogates, so that their row can be named
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._number = 0
        self._ended = False
        self.begin()

    def begin(self) -> None:
        """A row begins on the next line."""
        self.first = self._number + 1
        self._length = 0
        self._quotes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            self._ended = True
            raise StopIteration
        self._number += 1
        if self._length > parsing.MAX_ROW_BYTES:
            while line and not line.endswith(("\r", "\n")):
                line = self._read()
            raise RowError(NO_ROW.format(size=parsing.MAX_ROW_BYTES))
        return line

    def _read(self) -> str:
        line = self._text.readline(parsing.MAX_ROW_BYTES + 1)
        self._length += len(line)
        self._quotes += line.count('"')
        return line

    @property
    def bounded(self) -> bool:
        """Whether the malformed row ends on the line on which it begins: every quote in it is closed."""
        return self._number == self.first and (self._ended or self._quotes % 2 == 0)


def _malformed(error: Exception, lines: _Lines, header: list[str]) -> RowError:
    reason = error if isinstance(error, RowError) else RowError(f"malformed CSV: {error}")
    if not header:
        raise BrokenFile(f"the header cannot be read: {reason}", line=lines.first) from error
    if not lines.bounded:
        raise BrokenFile(
            f"{reason}; a quote that opens here is never closed, so the rows after it cannot be separated",
            line=lines.first,
            hint='put the field in double quotes, and write a quote in it twice: "5"" pipe"',
        ) from error
    return reason


def _header(fields: list[str], line: int) -> list[str]:
    if twice := sorted({name for name in fields if fields.count(name) > 1}):
        raise BrokenFile(
            f"the header names a column twice: {', '.join(name or repr(name) for name in twice)}",
            line=line,
            hint="rename one of them",
        )
    if not _utf_8(fields):
        raise BrokenFile(f"the header is {NOT_UTF_8}", line=line)
    return fields


def _row(header: list[str], fields: list[str]) -> dict[str, Any] | RowError:
    if len(fields) != len(header):
        return RowError(
            f"the row has a different number of fields from the header ({len(fields)}, not {len(header)}); "
            "put fields that contain commas or line breaks in double quotes"
        )
    if not _utf_8(fields):
        return RowError(NOT_UTF_8)
    return dict(zip(header, fields, strict=True))


def _utf_8(fields: list[str]) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for field in fields if not field.isascii() for letter in field)
