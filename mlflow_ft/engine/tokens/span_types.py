"""Spans of the assistant in a rendered conversation, and how to map them from a shape to a row's own text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mlflow_ft.engine.tokens.placeholders import ANY, MARK, Marked, details, mark, quotations

Way = Literal["generation markers", "prefix differences", "substitution", "whole text", "prompt"]
WAYS: tuple[Way, ...] = ("generation markers", "prefix differences", "substitution", "whole text", "prompt")
"""From the most to the least reliable, then the two that need no span."""


class MaskError(ValueError):
    """The loss mask of a row cannot be proved; the message says why, and `text` is the rendered row."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class Span(NamedTuple):
    """Where the assistant speaks in a rendered text, in characters."""

    begin: int
    said: int
    """After the last word of the turn."""
    close: int
    """The turn ends with the last of the added tokens between `said` and here, if there are any."""
    end: int
    """No token after this place belongs to the turn; its end-of-turn token is before it."""
    plain: bool
    """Whether the first added token after `said` may end the turn; else (for some calls) a special one at the end."""
    closed: bool
    """Whether everything follows `said` that the template writes if no turn follows."""
    way: Way


class Slot(NamedTuple):
    """A mark in a shape: where it ends, and the number of the piece or detail that it replaces."""

    end: int
    piece: int | None
    detail: int | None


class Frame:
    """The text of a shape between its marks, with which the texts of rows are compared.

    Raises:
        MaskError: the text contains something that looks like a mark and is not one.
    """

    def __init__(self, text: str, marks: Marked) -> None:
        self._slots: list[Slot] = []
        self._between: list[str] = []
        place = 0
        for match in (ANY if marks.details else MARK).finditer(text):
            piece, detail = match[1], (match[2] or match[3]) if marks.details else None
            slot = Slot(match.end(), None if piece is None else int(piece), None if detail is None else int(detail))
            known = len(marks.pieces) if slot.detail is None else len(marks.details)
            if (slot.piece if slot.detail is None else slot.detail) not in range(known):
                raise MaskError(f"the row contains text like {mark(0)}, which is reserved as a placeholder")
            self._slots.append(slot)
            self._between.append(text[place : match.start()])
            place = match.end()
        self._between.append(text[place:])
        self._ends = [slot.end for slot in self._slots]

    def fit(self, text: str, marks: Marked) -> list[int] | None:
        """The offset of a row's text from the shape after each mark; None if the row does not match the shape."""
        if not text.startswith(self._between[0]):
            return None
        place, ahead = len(self._between[0]), [0]
        for slot, following in zip(self._slots, self._between[1:], strict=True):
            for form in _forms(slot, marks):
                after = place + len(form)
                if text.startswith(form, place) and text.startswith(following, after):
                    break
            else:
                return None
            ahead.append(after - slot.end)
            place = after + len(following)
        return ahead if place == len(text) else None

    def carried(self, span: Span, ahead: list[int]) -> Span:
        """A span of the shape, in a matching row."""
        begin, said, close, end = (place + ahead[bisect_right(self._ends, place)] for place in span[:4])
        return span._replace(begin=begin, said=said, close=close, end=end)


def _forms(slot: Slot, marks: Marked) -> tuple[str, ...] | Iterator[str]:
    if slot.piece is None:
        return details(marks.details[slot.detail or 0])
    _, role, kind, words = marks.pieces[slot.piece]
    return quotations(words) if kind == "call" or role == "tool" else (words,)
