"""One list of objects, or objects one after another, read piece by piece: no larger than its largest row in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_ft.data import compressed, parsing
from mlflow_ft.data.compressed import BrokenFile
from mlflow_ft.data.parsing import DECODER, LENIENT, NO_ROW, NOT_UTF_8, RowError, checked, refused

PIECE = 2**20
SOLID = re.compile(r"[^ \t\r\n]")
LONGEST_TOKEN = len("-Infinity")
"""Letters before the end of what was read in which an error may come from the cut there."""


def read(file: Path, *, brackets: bool = True) -> Iterator[tuple[int, Any]]:
    """Line and value of every element; a RowError in place of a value that is well formed but refused.

    Raises:
        BrokenFile: the JSON itself is malformed; what comes behind cannot be told apart any more.
    """
    text = _Text(file)
    if brackets:
        text.expect("[")
    first = True
    while text.next_letter() != ("]" if brackets else ""):
        if brackets and not first:
            text.expect(",")
            text.next_letter()
        first = False
        yield text.line, text.value()
    if brackets:
        text.expect("]")
        if text.next_letter():
            raise text.broken("Extra data behind the list")


class _Text:
    """The text of a file with a place in it; what lies before the place is let go."""

    def __init__(self, file: Path) -> None:
        self._pieces = _decoded(file)
        self._text = ""
        self._place = 0
        self.line = 1

    def next_letter(self) -> str:
        """Skip white space; the letter at the place, "" at the end of the file."""
        while True:
            found = SOLID.search(self._text, self._place)
            self._advance(found.start() if found else len(self._text))
            if found:
                return found[0]
            if not self._more(PIECE):
                return ""

    def expect(self, letter: str) -> None:
        """Skip white space, and the letter that has to follow."""
        found = self.next_letter()
        if found != letter:
            raise self.broken(f"Expecting {letter!r}" + ("" if found else ", and the file ends"))
        self._advance(self._place + 1)

    def value(self) -> Any:
        """The value that begins here; more is read as long as it has no end."""
        while True:
            try:
                value, end = self._decode()
            except json.JSONDecodeError as error:
                if self._cut(error) and self._grow():
                    continue
                self._advance(min(error.pos, len(self._text)))
                raise self.broken(error.msg) from error
            except RecursionError as error:
                raise self.broken("nested too deeply") from error
            closed = self._text[end - 1] in '}]"'
            if not closed and end > len(self._text) - LONGEST_TOKEN and self._grow():
                continue  # a number may go on
            text = self._text[self._place : end]
            self._advance(end)
            return _taken(value, text)

    def broken(self, reason: str) -> BrokenFile:
        """What to raise for what is wrong at the place."""
        hint = "one JSON object a line (.jsonl), or one list of objects (.json)"
        return BrokenFile(f"malformed JSON: {reason}", line=self.line, hint=hint)

    def _decode(self) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(self._text, self._place)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return refused(error), LENIENT.raw_decode(self._text, self._place)[1]

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of what was read, and not from the file."""
        return error.pos >= len(self._text) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")

    def _advance(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _grow(self) -> bool:
        """Read as much again as there is of the value already, so that a long one is not tried again too often."""
        held = len(self._text) - self._place
        if held > parsing.MAX_ROW_BYTES:
            raise BrokenFile(
                f"a value has no end within {parsing.MAX_ROW_BYTES:,} bytes",
                line=self.line,
                hint="a bracket or a quote is not closed, or the row is no row; write one object a line (.jsonl)",
            )
        return self._more(max(PIECE, held))

    def _more(self, size: int) -> bool:
        """Let go of what lies before the place, and read on; False at the end of the file, where nothing moves."""
        added = []
        while size > 0 and (piece := next(self._pieces, "")):
            added.append(piece)
            size -= len(piece)
        if added:
            self._text = self._text[self._place :] + "".join(added)
            self._place = 0
        return bool(added)


def _taken(value: Any, text: str) -> Any:
    """The value, or the RowError that says why it is none."""
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
    """The text in pieces; bytes that are no UTF-8 pass as lone surrogates, so that the row they stand in is named."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    with compressed.text(file) as stream:
        while data := stream.read(PIECE):
            if text := decoder.decode(data):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text
