"""Where the assistant speaks in a rendered conversation, and how a place in a shape is found in a row's own text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mlflow_ft.engine.tokens.marks import ANY, MARK, Marked, details, mark, quotations

Way = Literal["generation markers", "prefix differences", "substitution", "whole text", "prompt"]
WAYS: tuple[Way, ...] = ("generation markers", "prefix differences", "substitution", "whole text", "prompt")
"""From the surest to the weakest, and the two that need no span."""


class MaskError(ValueError):
    """The loss mask of one row cannot be proved; the message says why, `text` is the row as the template writes it."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class Span(NamedTuple):
    """Where the assistant speaks in a rendered text, in characters."""

    begin: int
    said: int
    """Behind the last word of the turn."""
    close: int
    """The turn ends in the last of the added tokens between `said` and here, where there are any."""
    end: int
    """No token behind this place belongs to the turn; its end-of-turn token stands before."""
    plain: bool
    """Whether the first added token behind `said` may end the turn; else (of some calls) a special one at the end."""
    closed: bool
    """Whether all stands behind `said` that the template writes where no turn follows."""
    way: Way


class Slot(NamedTuple):
    """A mark in a shape: where it ends, and the number of the piece or of the detail that it stands for."""

    end: int
    piece: int | None
    detail: int | None


class Frame:
    """What a shape holds between its marks, with which the texts of rows are compared.

    Raises:
        MaskError: the text holds letters that look like a mark, and are none.
    """

    def __init__(self, text: str, marks: Marked) -> None:
        self._slots: list[Slot] = []
        self._between: list[str] = []
        place = 0
        for found in (ANY if marks.details else MARK).finditer(text):
            piece, detail = found[1], (found[2] or found[3]) if marks.details else None
            slot = Slot(found.end(), None if piece is None else int(piece), None if detail is None else int(detail))
            known = len(marks.pieces) if slot.detail is None else len(marks.details)
            if (slot.piece if slot.detail is None else slot.detail) not in range(known):
                raise MaskError(f"the row contains text like {mark(0)}, which is reserved as a placeholder")
            self._slots.append(slot)
            self._between.append(text[place : found.start()])
            place = found.end()
        self._between.append(text[place:])
        self._ends = [slot.end for slot in self._slots]

    def fit(self, text: str, marks: Marked) -> list[int] | None:
        """How far a row's text is ahead of the shape behind each mark; None where it is not the shape and its words."""
        if not text.startswith(self._between[0]):
            return None
        place, ahead = len(self._between[0]), [0]
        for slot, following in zip(self._slots, self._between[1:], strict=True):
            for form in _forms(slot, marks):
                behind = place + len(form)
                if text.startswith(form, place) and text.startswith(following, behind):
                    break
            else:
                return None
            ahead.append(behind - slot.end)
            place = behind + len(following)
        return ahead if place == len(text) else None

    def carried(self, span: Span, ahead: list[int]) -> Span:
        """A span of the shape in a row that fits."""
        begin, said, close, end = (place + ahead[bisect_right(self._ends, place)] for place in span[:4])
        return span._replace(begin=begin, said=said, close=close, end=end)


def _forms(slot: Slot, marks: Marked) -> tuple[str, ...] | Iterator[str]:
    if slot.piece is None:
        return details(marks.details[slot.detail or 0])
    _, role, kind, words = marks.pieces[slot.piece]
    return quotations(words) if kind == "call" or role == "tool" else (words,)
