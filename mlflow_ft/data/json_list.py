"""One list of objects, or objects one after another, read piece by piece: no larger than its largest row in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_ft.data import compressed
from mlflow_ft.data.parsing import DECODER, MAX_ROW_BYTES, RowError, checked, malformed
from mlflow_ft.errors import DataError

PIECE = 2**20
PLAIN = json.JSONDecoder()


def read(file: Path, *, brackets: bool = True) -> Iterator[tuple[int, Any]]:
    """Line and value of every element; a RowError in place of a value that is well formed but refused.

    Raises:
        DataError: the JSON itself is malformed; what comes behind cannot be told apart any more.
    """
    text = _Text(file)
    if brackets:
        text.expect("[")
    first = True
    while True:
        letter = text.next_letter()
        if letter == ("]" if brackets else ""):
            text.finish(brackets=brackets)
            return
        if brackets and not first:
            text.expect(",")
            text.next_letter()
        first = False
        yield text.line, text.value()


class _Text:
    """The text of a file with a place in it; what lies before the place is let go."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pieces = _decoded(file)
        self._text = ""
        self._place = 0
        self.line = 1

    def next_letter(self) -> str:
        """Skip white space; the letter at the place, "" at the end of the file."""
        while True:
            rest = self._text[self._place :].lstrip(" \t\r\n") if self._place < len(self._text) else ""
            if rest:
                self._advance(len(self._text) - len(rest))
                return rest[0]
            self._advance(len(self._text))
            if not self._more():
                return ""

    def expect(self, letter: str) -> None:
        found = self.next_letter()
        if found != letter:
            raise self._broken(f"Expecting {letter!r}" + ("" if found else ", and the file ends"))
        self._advance(self._place + 1)

    def finish(self, *, brackets: bool) -> None:
        """Nothing may stand behind the list."""
        if brackets:
            self.expect("]")
            if self.next_letter():
                raise self._broken("Extra data behind the list")

    def value(self) -> Any:
        """The value that begins here; more is read as long as it has no end."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except RowError as error:  # well formed, but for its keys: the end is found without looking at them
                try:
                    _, end = PLAIN.raw_decode(self._text, self._place)
                    value = error
                except (ValueError, RecursionError) as broken:
                    if not self._grow():
                        raise self._malformed(broken) from broken
                    continue
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._grow():
                    raise self._malformed(error) from error
                continue
            if end == len(self._text) and not isinstance(value, dict | list | str | RowError) and self._grow():
                continue  # a number may go on
            if not isinstance(value, RowError):
                value = checked(value, self._text[self._place : end])
            self._advance(end)
            return value

    def _advance(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _grow(self) -> bool:
        """Read as much again as there is of the value already, so that a long one is not tried again too often."""
        held = len(self._text) - self._place
        if held > MAX_ROW_BYTES:
            raise DataError(
                f"{self._file}:{self.line}: a value has no end within {MAX_ROW_BYTES // 2**20} MiB",
                hint="a bracket or a quote is not closed, or the row is no row; write one object a line (.jsonl)",
            )
        return self._more(max(PIECE, held))

    def _more(self, size: int = PIECE) -> bool:
        self._text = self._text[self._place :]
        self._place = 0
        begin = len(self._text)
        added = []
        while size > 0 and (piece := next(self._pieces, "")):
            added.append(piece)
            size -= len(piece)
        self._text += "".join(added)
        return len(self._text) > begin

    def _malformed(self, error: Exception) -> DataError:
        if isinstance(error, json.JSONDecodeError):
            self._advance(min(error.pos, len(self._text)))
        return self._broken(str(malformed(error)).removeprefix("malformed JSON: ").partition(" (column")[0])

    def _broken(self, reason: str) -> DataError:
        return DataError(
            f"{self._file}:{self.line}: malformed JSON: {reason}",
            hint="one JSON object a line (.jsonl), or one list of objects (.json)",
        )


def _decoded(file: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with compressed.binary(file) as stream:
        while True:
            data = stream.read(PIECE)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                raise DataError(
                    f"{file}:{line}: not UTF-8 text ({error.reason})", hint="save the file as UTF-8"
                ) from error
            line += text.count("\n")
            if text:
                yield text
            elif not data:
                return
