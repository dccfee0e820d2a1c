"""Marks in place of what is said, so that a rendered conversation shows what its chat template adds, and where.

    {"role": "user", "content": "Hi!\\n"}      {"role": "user", "content": "Zq7Jx0Wk\\n"}
    {"role": "assistant", "content": "Yo"}    {"role": "assistant", "content": "Zq7Jx1Wk"}

White space around the words stays, because templates trim it, and so do tags for which a template looks at either end.
Thoughts, the names of functions and their arguments get marks of their own. Ids and numbers, which tell nobody who
speaks, get other ones, so that conversations that differ in them alone are written with the same marks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mlflow_ft.engine.tokens.template_code import Code
from mlflow_ft.rows import Message

MARK = re.compile(r"Zq7Jx(\d+)Wk")
"""Letters and digits alone, which no template trims, splits or escapes."""
DETAIL = re.compile(r"Zq(\d{5,})Wk|(?<!\d)7073(\d{6})(?:\.7073|7073)(?!\d)")
"""An id, of 9 letters, since some templates count them; a whole number; one with a point."""
ANY = re.compile(f"{MARK.pattern}|{DETAIL.pattern}")
MOST_NUMBERS = 10**6
ID_LENGTH = 9
"""Of an id some templates write the last letters alone."""
OPENING = re.compile(r"\s*(?:[<\[◁]\S{1,30}?[>\]▷])?")
"""The tag with which thoughts begin, where there is one."""
THOUGHT = "</think>"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Under which of them transformers finds what was thought, the first that is there."""
Kind = Literal["words", "thought", "call"]
Put = Callable[[Kind, Any], Any]
"""Puts a mark in place of a text that says something."""
NOTHING = Code()


class Piece(NamedTuple):
    """What a turn says, or a part of it, for which a mark stands, without the white space around it.

    A tuple, as `spans.Span` is: they are made for every row, and quickly.
    """

    turn: int
    role: str
    kind: Kind
    text: str


class Marked(NamedTuple):
    """Turns with marks, and by number what the marks stand for."""

    turns: list[dict[str, Any]]
    pieces: list[Piece]
    details: list[str]
    """What marks of the pattern `DETAIL` stand for, as a template writes it."""


def mark(number: int) -> str:
    """The letters that stand for a piece."""
    return f"Zq7Jx{number}Wk"


def numbers(text: str, begin: int = 0, end: int | None = None) -> list[int]:
    """The marks in a text, from the first to the last."""
    return [int(found[1]) for found in MARK.finditer(text, begin, len(text) if end is None else end)]


def marked(messages: Sequence[Message], code: Code = NOTHING, *, only: int | None = None, role: str = "") -> Marked:
    """The turns with marks for words; or `only` one turn so, or those of one `role`, and no ids and numbers then."""
    whole = only is None and not role
    marks = _Marks(code, details=whole)
    turns = [dict(message) for message in messages]
    for turn, message in enumerate(turns):
        if whole or turn == only or message["role"] == role:
            marks.put_into(turn, message)
    return Marked(turns, marks.pieces, marks.details)


def signature(turns: Sequence[Message]) -> str:
    """The same for turns with marks that templates write alike; keys that few of them know do not count."""
    known = ("role", "content", *THOUGHT_KEYS, "tool_call_id")
    return repr([([turn.get(key) for key in known], _functions(turn), _ids(turn)) for turn in turns])


class _Marks:
    """The marks of one conversation."""

    def __init__(self, code: Code, *, details: bool) -> None:
        self.pieces: list[Piece] = []
        self.details: list[str] = []
        self._code = code
        self._with_details = details
        self._ids: dict[str, str] = {}

    def put_into(self, turn: int, message: dict[str, Any]) -> None:
        """Put marks in place of what a turn says."""
        role, content = message["role"], message.get("content")

        def put(kind: Kind, text: Any) -> Any:
            words = text.strip() if isinstance(text, str) else ""
            if not words:
                return text  # templates ask whether something is said; a mark would say so
            self.pieces.append(Piece(turn, role, kind, words))
            return text.replace(words, mark(len(self.pieces) - 1), 1)

        if role == "assistant":
            if thoughts := [key for key in THOUGHT_KEYS if message.get(key) is not None]:
                message |= dict.fromkeys(thoughts, put("thought", message[thoughts[0]]))
            content = self._spoken(content, put)
            if message.get("tool_calls"):
                message["tool_calls"] = [self._call(call, put) for call in message["tool_calls"]]
        else:
            content = self._between_tags(content, put)
            if "tool_call_id" in message:
                message["tool_call_id"] = self._id(message["tool_call_id"])
        if content is not None:
            message["content"] = content

    def _spoken(self, content: Any, put: Put) -> Any:
        """What the assistant says: thoughts up to the last tag at which the template takes words apart, then words."""
        tags = (THOUGHT, *self._code.closings)
        tag = next((one for one in tags if isinstance(content, str) and one in content), None)
        if tag is None:
            return put("words", content)
        before, _, words = content.rpartition(tag)
        opening = OPENING.match(before)
        start = opening.end() if opening else 0
        return before[:start] + put("thought", before[start:]) + tag + put("words", words)

    def _between_tags(self, content: Any, put: Put) -> Any:
        """What others say: a tag at either end stays where the template looks for it there."""
        if not isinstance(content, str):
            return put("words", content)
        inside = content.strip()
        start = next((one for one in self._code.starts if inside.startswith(one)), "")
        end = next((one for one in self._code.ends if inside[len(start) :].endswith(one)), "")
        if not start and not end:
            return put("words", content)
        before, words, after = content.partition(inside)
        words = words[len(start) : len(words) - len(end)]
        return before + start + put("words", words) + end + after

    def _call(self, call: Mapping[str, Any], put: Put) -> dict[str, Any]:
        function = dict(call.get("function", call))
        function["name"] = put("call", function.get("name"))
        if "arguments" in function:
            function["arguments"] = self._values(function["arguments"], put)
        found = {**call, "function": function} if "function" in call else function
        return {**found, "id": self._id(found["id"])} if "id" in found else found

    def _values(self, value: Any, put: Put) -> Any:
        if isinstance(value, Mapping):
            return {key: self._values(one, put) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._values(one, put) for one in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._number(value)
        return put("call", value)

    def _number(self, value: float) -> float:
        number = len(self.details)
        if not self._with_details or not math.isfinite(value) or number >= MOST_NUMBERS:
            return value
        self.details.append(json.dumps(value))
        return int(f"7073{number:06d}7073") if isinstance(value, int) else float(f"7073{number:06d}.7073")

    def _id(self, value: Any) -> Any:
        """The same mark for the same id: templates look by it which call a result belongs to."""
        if not self._with_details or not isinstance(value, str) or not value.strip():
            return value
        if value not in self._ids:
            self._ids[value] = f"Zq{len(self.details):05d}Wk"
            self.details.append(value)
        return self._ids[value]


def _functions(turn: Message) -> list[Any]:
    calls = [call.get("function", call) for call in turn.get("tool_calls") or ()]
    return [(call.get("name"), call.get("arguments")) for call in calls]


def _ids(turn: Message) -> list[Any]:
    return [call.get("id") for call in turn.get("tool_calls") or ()]


def argument_names(turn: Message) -> Iterator[str]:
    """The names of the arguments in a turn's calls, and all names in their values."""
    for _, given in _functions(turn):
        yield from _names(given)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _names(one)


def quotations(text: str) -> Iterator[str]:
    """How a template may write what is no speech: as it is, as JSON has it, or Python."""
    yield text
    yield (written := json.dumps(text, ensure_ascii=False)[1:-1])
    yield json.dumps(text)[1:-1]
    yield json.dumps(written, ensure_ascii=False)[1:-1]  # arguments as text within JSON
    yield repr(f'"{text}')[2:-1]  # between single quotes


def details(text: str) -> Iterator[str]:
    """How a template may write an id or a number: as it is, or the end of it."""
    yield text
    yield text[-ID_LENGTH:]
