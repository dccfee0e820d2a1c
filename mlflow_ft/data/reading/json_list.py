"""Reads one list of objects, or consecutive objects, piece by piece: memory holds no more than the largest row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow_ft.data.reading import compressed, parsing
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.parsing import DECODER, LENIENT, NO_ROW, NOT_UTF_8, RowError, checked, refused

PIECE = 2**20
SOLID = re.compile(r"[^ \t\r\n]")
DEEPEST = 4
"""Levels of nested objects that are read key by key; anything deeper is an ordinary value."""
LONGEST_TOKEN = len("-Infinity")
"""An error within this many characters of the end of what was read may come from the cut there."""


def read(file: Path, *, brackets: bool = True) -> Iterator[tuple[int, Any]]:
    """Line and value of every element; a RowError in place of a value that is well formed but refused.

    Raises:
        BrokenFile: the JSON itself is malformed; the rest cannot be separated into rows.
    """
    text = _Text(file)
    if not brackets:
        while text.next_letter():
            yield text.line, text.value()
        return
    yield from _elements(text)
    if text.next_letter():
        raise text.broken("Extra data after the list")


def read_inside(file: Path, path: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Line and value of every element of the list under these nested keys in each object.

    Raises:
        BrokenFile: the JSON itself is malformed.
    """
    text = _Text(file)
    while text.next_letter():
        yield from _inside(text, path)


def outline(file: Path, *, most: int) -> dict[str, Any] | None:
    """The one object in a file, with the first elements of each list in it; None where there is not exactly one.

    Raises:
        BrokenFile: the JSON itself is malformed.
    """
    text = _Text(file)
    if text.next_letter() != "{":
        return None
    value = _outline(text, most)
    return None if text.next_letter() else value


def _elements(text: _Text) -> Iterator[tuple[int, Any]]:
    text.expect("[")
    first = True
    while text.next_letter() != "]":
        if not first:
            text.expect(",")
            text.next_letter()
        first = False
        yield text.line, text.value()
    text.expect("]")


def _members(text: _Text) -> Iterator[str]:
    """The keys of an object; the caller must read each value before it asks for the next key."""
    text.expect("{")
    seen: set[str] = set()
    while text.next_letter() != "}":
        if seen:
            text.expect(",")
        if text.next_letter() != '"':
            raise text.broken("Expecting property name enclosed in double quotes")
        key = str(text.value())
        if key in seen:
            raise text.broken(f"the key {key!r} occurs twice")
        seen.add(key)
        text.expect(":")
        yield key
    text.expect("}")


def _inside(text: _Text, path: Sequence[str]) -> Iterator[tuple[int, Any]]:
    for key in _members(text):
        wanted = bool(path) and key == path[0]
        if wanted and len(path) == 1 and text.next_letter() == "[":
            yield from _elements(text)
        elif wanted and text.next_letter() == "{":
            yield from _inside(text, path[1:])
        else:
            _outline_of(text, 0)


def _outline(text: _Text, most: int, depth: int = 0) -> dict[str, Any]:
    return {key: _outline_of(text, most, depth) for key in _members(text)}


def _outline_of(text: _Text, most: int, depth: int = 0) -> Any:
    """The value at the place, with at most `most` elements of its lists."""
    letter = text.next_letter()
    if letter == "[":
        return [value for number, (_, value) in enumerate(_elements(text)) if number < most]
    return _outline(text, most, depth + 1) if letter == "{" and depth < DEEPEST else text.value()


class _Text:
    """The text of a file with a place in it; text before the place is dropped from memory."""

    def __init__(self, file: Path) -> None:
        self._pieces = _decoded(file)
        self._text = ""
        self._place = 0
        self.line = 1
        self._gone = 0
        """Characters that were dropped."""
        self._line_begin = 0
        """Where the line of the place begins, in characters from the beginning of the file."""

    @property
    def column(self) -> int:
        """The place's column, from 1."""
        return self._gone + self._place - self._line_begin + 1

    def next_letter(self) -> str:
        """Skip white space; the letter at the place, "" at the end of the file."""
        while True:
            letter = SOLID.search(self._text, self._place)
            self._advance(letter.start() if letter else len(self._text))
            if letter:
                return letter[0]
            if not self._more(PIECE):
                return ""

    def expect(self, letter: str) -> None:
        """Skip white space and the letter that must follow."""
        actual = self.next_letter()
        if actual != letter:
            reason = f"Expecting {letter!r}"
            raise self.broken(reason) if actual else self._ended(f"{reason}, and the file ends")
        self._advance(self._place + 1)

    def value(self) -> Any:
        """The value that begins here; more is read until it ends."""
        while True:
            try:
                value, end = self._decode()
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._grow():
                    continue
                raise self._malformed(error) from error
            except RecursionError as error:
                raise self.broken("nested too deeply") from error
            closed = self._text[end - 1] in '}]"'
            if not closed and end > len(self._text) - LONGEST_TOKEN and self._grow():
                continue  # a number may go on
            text = self._text[self._place : end]
            self._advance(end)
            return _taken(value, text)

    def broken(self, reason: str) -> BrokenFile:
        """The error for the place."""
        hint = "write one JSON object per line (.jsonl), or one list of objects (.json)"
        return BrokenFile(f"malformed JSON: {reason} (column {self.column})", line=self.line, hint=hint)

    def _malformed(self, error: json.JSONDecodeError) -> BrokenFile:
        self._advance(min(error.pos, len(self._text)))
        if not parsing.is_cut(error, self._text):
            return self.broken(error.msg)
        begin = f" line {self.line}, column {self.column}" if error.msg.endswith(" at") else ""
        self._advance(len(self._text))
        return self._ended(f"{error.msg}{begin}, and the file ends")

    def _ended(self, reason: str) -> BrokenFile:
        last = self.column - 1
        where = f"at line {self.line}, column {last}" if last else f"with line {self.line - 1}"
        hint = "download or write the file again, or end it by hand after its last complete row"
        return BrokenFile(f"malformed JSON: {reason} {where}: {parsing.CUT}", line=self.line, hint=hint)

    def _decode(self) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(self._text, self._place)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return refused(error), LENIENT.raw_decode(self._text, self._place)[1]

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of what was read, and not from the file."""
        return error.pos >= len(self._text) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")

    def _advance(self, place: int) -> None:
        if lines := self._text.count("\n", self._place, place):
            self.line += lines
            self._line_begin = self._gone + self._text.rfind("\n", self._place, place) + 1
        self._place = place

    def _grow(self) -> bool:
        """Double what was read of the value, so that a long one is not parsed too often."""
        held = len(self._text) - self._place
        if held > parsing.MAX_ROW_BYTES:
            raise BrokenFile(
                f"a value does not end within {parsing.MAX_ROW_BYTES:,} bytes",
                line=self.line,
                hint="a bracket or a quote is not closed, or this is not a row; write one object per line (.jsonl)",
            )
        return self._more(max(PIECE, held))

    def _more(self, size: int) -> bool:
        """Drop the text before the place and read on; False at the end of the file, where nothing changes."""
        added = []
        while size > 0 and (piece := next(self._pieces, "")):
            added.append(piece)
            size -= len(piece)
        if added:
            self._gone += self._place
            self._text = self._text[self._place :] + "".join(added)
            self._place = 0
        return bool(added)


def _taken(value: Any, text: str) -> Any:
    """The value, or the RowError that says why it is refused."""
    if isinstance(value, RowError):
        return value
    if len(text) > parsing.MAX_ROW_BYTES:
        return RowError(NO_ROW.format(size=parsing.MAX_ROW_BYTES))
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return RowError(NOT_UTF_8)
    return checked(value, text)


def _decoded(file: Path) -> Iterator[str]:
    """The text in pieces; bytes that are not UTF-8 pass as lone surrogates, so that their row can be named."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    with compressed.text(file) as stream:
        while data := stream.read(PIECE):
            if text := decoder.decode(data):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text
