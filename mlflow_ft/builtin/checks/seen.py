"""Shared by the checks: the turns of a row, and a compact record of every row seen."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from mlflow_ft import Checked, Message
from mlflow_ft.builtin.checks.words import excerpt


def turns(row: Checked) -> tuple[Message, ...]:
    """Every turn of a row, including both answers of a preference; none of a text."""
    return (*row.example.messages, *row.example.chosen, *row.example.rejected)


def content(turn: Message) -> str:
    """The words of a turn; "" where it has none."""
    value = turn.get("content")
    return value if isinstance(value, str) else ""


def said(row: Checked) -> Iterator[tuple[str, str]]:
    """Role and words of every turn of a row, including tool calls; a text has no role."""
    if row.example.text is not None:
        yield "", row.example.text
    for turn in turns(row):
        calls = turn.get("tool_calls")
        yield turn["role"], f"{content(turn)} {calls}" if calls else content(turn)


def squeezed(value: Any) -> Any:
    """A JSON value whose texts have single spaces only."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return {key: squeezed(inner) for key, inner in value.items()}
    return [squeezed(inner) for inner in value] if isinstance(value, list | tuple) else value


class Seen:
    """Where every seen row is, with an excerpt where one is given: about 20 bytes per row plus the excerpt.

    Rows are known by the order in which they were seen, from 0.
    """

    def __init__(self) -> None:
        self.index = array("q")
        self._lines = array("q")
        self._files = array("i")
        self._names: dict[str, int] = {}
        self._excerpts = bytearray()
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self.index)

    def add(self, row: Checked, text: str = "", *, longest: int = 200) -> None:
        self.index.append(row.index)
        self._lines.append(row.line)
        self._files.append(self._names.setdefault(row.file, len(self._names)))
        if text:
            self._excerpts += excerpt(text, longest).encode()
        self._ends.append(len(self._excerpts))

    def extend(self, later: Seen) -> None:
        """Add the rows that another one has seen after these."""
        begin = len(self._excerpts)
        names = [self._names.setdefault(name, len(self._names)) for name in later._names]
        self.index.extend(later.index)
        self._lines.extend(later._lines)
        self._files.extend(names[number] for number in later._files)
        self._excerpts += later._excerpts
        self._ends.extend(begin + end for end in later._ends)

    def place(self, number: int) -> dict[str, Any]:
        """File and line of a row, as in an example."""
        return {"file": list(self._names)[self._files[number]], "line": self._lines[number]}

    def where(self, number: int) -> str:
        """File and line of a row, as in a message."""
        place = self.place(number)
        return f"{place['file']}:{place['line']}"

    def excerpt(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        return self._excerpts[start : self._ends[number]].decode()
