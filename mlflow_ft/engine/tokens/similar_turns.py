"""Turns of a long conversation that a template writes alike: the spans of a few give those of all.

    <|im_end|>\\n<|im_start|>assistant\\n Zq7Jx41Wk <|im_end|>\\n<|im_start|>user\\n

To locate one turn, the template must render everything before it again, so a conversation of 1,000 answers would be
rendered 2,000 times. Most turns have the same text around them. The first, the middle and the last of them are located
one by one; if all three agree, the others follow them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from mlflow_ft.engine.tokens.placeholders import DETAIL, MARK, Piece
from mlflow_ft.engine.tokens.span_types import WAYS, Span
from mlflow_ft.rows import Message

SAMPLES = 3


class Around(NamedTuple):
    """Where a turn's own marks are, and how many characters on either side it shares with similar turns."""

    first: int
    last: int
    before: int
    after: int


class Alike:
    """The assistant's turns in a conversation with marks, grouped by the text around them."""

    def __init__(self, text: str, pieces: Sequence[Piece], messages: Sequence[Message]) -> None:
        self._text = text
        self._pieces = pieces
        self._messages = messages
        self._around: dict[int, Around] = {}

    def samples(self, turn: int) -> tuple[int, ...]:
        """The first, the middle and the last of the turns like this one; empty if it is one of them."""
        kin = self._kin.get(turn, ())
        samples = (kin[0], kin[len(kin) // 2], kin[-1]) if len(kin) > SAMPLES else ()
        return () if turn in samples else samples

    def carried(self, spans: Mapping[int, Span], turn: int) -> Span | None:
        """The span of a turn, from the `spans` of turns like it; None if these differ, or reach too far."""
        candidates = {self._moved(span, self._around[other], self._around[turn]) for other, span in spans.items()}
        bare = {span and span._replace(way=WAYS[0]) for span in candidates}
        if None in candidates or len(bare) != 1:
            return None
        return max((span for span in candidates if span), key=lambda span: WAYS.index(span.way))

    @staticmethod
    def _moved(span: Span, here: Around, there: Around) -> Span | None:
        if not here.first - here.before <= span.begin <= here.first:
            return None
        if not here.last <= min(span.said, span.close) <= max(span.close, span.end) <= here.last + here.after:
            return None
        said, close, end = (place - here.last + there.last for place in (span.said, span.close, span.end))
        return span._replace(begin=span.begin - here.first + there.first, said=said, close=close, end=end)

    @cached_property
    def _kin(self) -> Mapping[int, tuple[int, ...]]:
        """For every assistant's turn with content, all turns like it."""
        groups: dict[object, list[int]] = {}
        marks = [(match.start(), match.end(), int(match[1])) for match in MARK.finditer(self._text)]
        own: dict[int, list[int]] = {}
        seen: set[int] = set()
        for place, (*_, number) in enumerate(marks):
            if number not in seen:  # the name of a function may appear at its result, too
                seen.add(number)
                own.setdefault(self._pieces[number].turn, []).append(place)
        edges = [0, *(edge for begin, end, _ in marks for edge in (begin, end)), len(self._text)]
        for turn, places in own.items():
            if self._messages[turn]["role"] != "assistant":
                continue
            first, last = places[0], places[-1]
            before = self._text[edges[2 * first] : edges[2 * first + 1]]
            after = self._text[edges[2 * last + 2] : edges[2 * last + 3]]
            before, after = self._after_words(before, turn - 1), self._before_words(after, turn + 1)
            self._around[turn] = Around(marks[first][0], marks[last][1], len(before), len(after))
            kinds = [self._pieces[marks[place][2]].kind for place in (first, last)]
            said = (bool(self._messages[turn].get("content")), bool(self._messages[turn].get("tool_calls")))
            letters = (DETAIL.sub("\0", before), DETAIL.sub("\0", after))
            groups.setdefault((letters, *kinds, said, self._role(turn - 1), self._role(turn + 1)), []).append(turn)
        return {turn: tuple(turns) for turns in groups.values() for turn in turns}

    def _role(self, turn: int) -> str:
        return str(self._messages[turn]["role"]) if 0 <= turn < len(self._messages) else ""

    def _words(self, turn: int) -> str:
        """What others say, where no mark replaces it."""
        content = self._messages[turn].get("content") if 0 <= turn < len(self._messages) else None
        return content.strip() if isinstance(content, str) else ""

    def _after_words(self, letters: str, turn: int) -> str:
        words = self._words(turn)
        return letters.rpartition(words)[2] if words else letters

    def _before_words(self, letters: str, turn: int) -> str:
        words = self._words(turn)
        return letters.partition(words)[0] if words else letters
