"""Locate the assistant's turns in a rendered conversation by its shape: the text with marks in place of words.

    <|im_start|>user\\nZq7Jx0Wk<|im_end|>\\n<|im_start|>assistant\\nZq7Jx1Wk<|im_end|>\\n

All rows with two such turns have this shape, so its spans are kept. A row's own text must equal the shape, character by
character, with its words in place of the marks: this proves who says what. `Write` is the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Protocol

from mlflow_ft.engine.tokens.placeholders import MARK, THOUGHT_KEYS, Marked, argument_names, mark, numbers, quotations
from mlflow_ft.engine.tokens.similar_turns import Alike
from mlflow_ft.engine.tokens.span_types import Frame, MaskError, Span, Way
from mlflow_ft.rows import Message

__all__ = ["MaskError", "Shape", "Span", "Tail", "Way", "Write", "tail"]


class Write(Protocol):
    """Renders turns with the chat template, or the `prompt` for the next turn."""

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What the template writes after an answer in words."""

    last: str = ""
    """If no turn follows."""
    always: str = ""
    """Whether or not turns follow; Phi's templates write an end of sequence after the last turn only."""


def tail(write: Write) -> Tail:
    """What follows an answer in words, in the shortest conversations; empty if the template rejects them."""
    turns = [{"role": role, "content": mark(at)} for at, role in enumerate(("user", "assistant") * 2)]
    try:
        last, followed = (write(some).partition(mark(1))[2] for some in (turns[:2], turns))
    except MaskError:
        return Tail()
    return Tail(last=last, always=commonprefix([last, followed]))  # noqa: RUF071  # letters are what is meant


class Shape:
    """A conversation with marks for words, as the template writes it.

    `generated` is what the template marks as generated, in characters; () if it marks nothing.
    `lead` is the text before the first mark of the only turn with marks, if known.
    """

    def __init__(
        self,
        marks: Marked,
        *,
        write: Write,
        tail: Tail,
        text: str,
        generated: Sequence[tuple[int, int]],
        lead: str | None = None,
    ) -> None:
        self._messages: Sequence[Message] = marks.turns
        self._pieces = [piece._replace(text="") for piece in marks.pieces]  # a shape outlives its first row
        self._write = write
        self._tail = tail
        self._lead = lead
        self._text = text
        self._generated = generated
        self._frame = Frame(text, marks)
        self._slots = [(match.start(), match.end(), int(match[1])) for match in MARK.finditer(text)]
        self._written = {number for *_, number in self._slots}
        self._own: dict[int, list[int]] = {}
        for number, piece in enumerate(self._pieces):
            self._own.setdefault(piece.turn, []).append(number)
        self._alike = Alike(text, self._pieces, self._messages)
        self._spans: dict[int, Span] = {}
        self._final: dict[int, Span] = {}

    # --- a row of this shape

    def fit(self, text: str, marks: Marked) -> list[int] | None:
        """The offset of a row's text from the shape after each mark; None if the row does not match the shape."""
        return self._frame.fit(text, marks)

    def placed(self, turn: int, ahead: list[int]) -> Span:
        """The span of a turn in a matching row."""
        return self._frame.carried(self.span(turn), ahead)

    def unwritten(self, turn: int) -> bool:
        """Whether the template omits the assistant's thoughts in a turn."""
        return any(self._pieces[number].kind == "thought" for number in self._of(turn) - self._written)

    # --- a turn in the shape

    def span(self, turn: int) -> Span:
        """The span of an assistant's turn in the shape.

        Raises:
            MaskError: the template does not write the turn, or writes other speakers' text into it.
        """
        if turn not in self._final:
            if self._passed:
                raise MaskError(self._passed)
            self._final[turn] = self._as_generated(turn, self._as_others(turn) or self._by_itself(turn))
        return self._final[turn]

    def _as_others(self, turn: int) -> Span | None:
        """The span of a turn, from those of similar turns; None if it must be located on its own."""
        samples = self._alike.samples(turn)
        try:
            span = (
                self._alike.carried({sample: self._by_itself(sample) for sample in samples}, turn) if samples else None
            )
        except MaskError:
            return None
        if span is not None:
            self._check(turn, span, last=False)
        return span

    def _by_itself(self, turn: int) -> Span:
        if turn not in self._spans:
            self._spans[turn] = self._span(turn)
        return self._spans[turn]

    @cached_property
    def _passed(self) -> str:
        """Why nothing can be learned if the template omits what others say; "" if it does not."""
        passed = [at for at, piece in enumerate(self._pieces) if at not in self._written and piece.role != "assistant"]
        if not passed:
            return ""
        whose = f"turn {self._pieces[passed[0]].turn + 1}, the {self._pieces[passed[0]].role}'s,"
        if passed[0] in numbers(self._write(self._messages[:-1], prompt=True)):
            return f"the chat template writes {whose} in a prompt, but not when an answer follows"
        return f"the chat template does not write {whose} unchanged"

    def _span(self, turn: int) -> Span:
        """What the template adds to the prompt; located by the marks where later turns change how it is written."""
        if turn == 0:
            raise MaskError("turn 1 is the assistant's, with nothing before it")
        if not isinstance(self._messages[turn].get("content") or "", str):
            raise MaskError(f"the assistant's content in turn {turn + 1} is not text")
        last = turn == len(self._messages) - 1
        before = self._write(self._messages[:turn], prompt=True)
        after = self._text if last else self._write(self._messages[: turn + 1])
        here, there, words = self._last_mark(turn, before, after)
        rest = commonprefix([self._text[here:], after[there:]])  # noqa: RUF071  # letters are what is meant
        # a call, or an empty turn, ends as a turn of words if it can
        as_words = bool(self._tail.last) and after.endswith(self._tail.last)
        spoken = len(after) - len(self._tail.last) - there if as_words and not words else 0
        said = here + min(spoken, len(rest))
        follows = self._text.startswith(before)
        same = follows and self._text.startswith(after[: there + len(rest)])
        span = Span(
            begin=len(before) if follows else self._begin(turn, before),
            said=said,
            close=self._close(said, here + len(rest)),
            end=here + len(rest),
            plain=words or as_words,
            closed=rest.startswith(after[there:].rstrip()),
            way="prefix differences" if same else "substitution",
        )
        self._check(turn, span, last=last)
        return span

    def _close(self, said: int, end: int) -> int:
        """The place after what always follows the words of an answer, and after their trailing white space."""
        written = said + len(self._text[said:end]) - len(self._text[said:end].lstrip())
        always = self._tail.always.lstrip()
        return written + len(always) if self._text.startswith(always, written, end) else said

    def _last_mark(self, turn: int, before: str, after: str) -> tuple[int, int, bool]:
        """Where the turn's last mark ends, here and if no turn follows; and whether it replaces words."""
        own = [match for match in MARK.finditer(after) if self._pieces[int(match[1])].turn == turn]
        if not own and not self._of(turn):
            if not (self._text.startswith(before) and after.startswith(before)):
                raise MaskError(self._differs(turn))
            return len(before), len(before), False
        number = int(own[-1][1]) if own else -1
        here = [end for _, end, slot in self._slots if slot == number]
        if not here:
            raise MaskError(self._missing(turn, set(numbers(after))))
        words = self._pieces[number].kind == "words"
        if words and len(here) > 1:
            raise MaskError(f"the chat template writes turn {turn + 1} more than once")
        return here[0], own[-1].end(), words

    def lead(self, turn: int) -> str:
        """What the template writes in a turn before its first word (a space, a channel)."""
        begin = self.span(turn).begin
        first = MARK.search(self._text, begin)
        return self._text[begin : first.start() if first else None]

    def _begin(self, turn: int, before: str) -> int:
        """Where a turn begins if its prompt is written differently: after what both add to the turn before it."""
        own = self._of(turn)
        at = next(at for at, (*_, number) in enumerate(self._slots) if number in own)
        first, _, number = self._slots[at]
        if self._lead is not None and self._text.endswith(self._lead, 0, first):
            return first - len(self._lead)
        prompt_marks = list(MARK.finditer(before))
        if not at or not prompt_marks or int(prompt_marks[-1][1]) != self._slots[at - 1][2]:
            raise MaskError(self._differs(turn))
        place = self._slots[at - 1][1]
        between = self._text[place:first]
        if self._pieces[number].kind == "call":  # what precedes the name of a function belongs to the turn, too
            words = {"role": "assistant", "content": mark(len(self._pieces))}
            plain = self._write([*self._messages[:turn], words, *self._messages[turn + 1 :]])
            between = plain.partition(words["content"])[0].rpartition(prompt_marks[-1][0])[2]
        header = commonprefix([before[prompt_marks[-1].end() :], between])  # noqa: RUF071
        if not self._text.startswith(header, place):
            raise MaskError(self._differs(turn))
        return place + len(header)

    def _of(self, turn: int) -> set[int]:
        """The numbers of a turn's own pieces."""
        return set(self._own.get(turn, ()))

    def _check(self, turn: int, span: Span, *, last: bool) -> None:
        within, own = set(numbers(self._text, span.begin, span.end)), self._of(turn)
        if within - own:
            raise MaskError(f"the chat template writes other speakers' text into turn {turn + 1}")
        if any(last or self._pieces[number].kind != "thought" for number in own - within):
            raise MaskError(self._missing(turn, within))
        speech = self._text[span.begin : span.end]
        names = argument_names(self._messages[turn])
        if not all(any(form in speech for form in quotations(name)) for name in names):
            raise MaskError(f"the chat template does not write the tool calls of turn {turn + 1}")

    def _missing(self, turn: int, within: set[int]) -> str:
        missing = {self._pieces[number].kind for number in self._of(turn) - within}
        if "call" in missing:
            return f"the chat template does not write the tool calls of turn {turn + 1}"
        if missing == {"thought"}:
            key = next((f" (`{key}`)" for key in THOUGHT_KEYS if self._messages[turn].get(key)), "")
            return f"the chat template omits the assistant's thoughts in turn {turn + 1}, its last{key}"
        if missing and self._messages[turn].get("tool_calls"):
            return f"the chat template omits the assistant's text next to the tool calls of turn {turn + 1}"
        return f"the chat template does not write turn {turn + 1} unchanged" if missing else self._differs(turn)

    def _differs(self, turn: int) -> str:
        return (
            f"the chat template renders turn {turn + 1} differently when later turns follow, "
            "so the assistant's text cannot be separated from the rest"
        )

    # --- generation markers

    @cached_property
    def _regions(self) -> Mapping[int, Sequence[tuple[int, int, set[int]]]]:
        """By turn, the generated regions that contain part of it, and the marks in them."""
        regions: dict[int, list[tuple[int, int, set[int]]]] = {}
        for begin, end in self._generated:
            within = set(numbers(self._text, begin, end))
            if any(self._pieces[number].role != "assistant" for number in within):
                raise MaskError("the chat template marks other speakers' text as generated")
            for turn in {self._pieces[number].turn for number in within}:
                regions.setdefault(turn, []).append((begin, end, within))
        return regions

    def _as_generated(self, turn: int, span: Span) -> Span:
        """The span as the template marks it, which must agree with the one found without the markers."""
        own = self._of(turn) & set(numbers(self._text, span.begin, span.end))
        mine = [(begin, end) for begin, end, within in self._regions.get(turn, ()) if within & own]
        if not mine:
            return span
        begin, end = mine[0][0], mine[-1][1]
        if set(numbers(self._text, begin, end)) != own:
            raise MaskError(f"what the chat template marks as generated is not turn {turn + 1}")
        return span._replace(begin=max(begin, span.begin), way="generation markers")
