"""Replace content with marks, so that a rendered conversation shows what its chat template adds, and where.

    {"role": "user", "content": "Hi!\\n"}      {"role": "user", "content": "Zq7Jx0Wk\\n"}
    {"role": "assistant", "content": "Yo"}    {"role": "assistant", "content": "Zq7Jx1Wk"}

White space around the words stays, because templates trim it, and so do tags that a template looks for at either end.
Thoughts, names of functions and their arguments get separate marks. Ids and numbers, which do not show who speaks, get
another kind, so that conversations that differ only in them are written with the same marks.
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
"""Only letters and digits, which no template trims, splits or escapes."""
DETAIL = re.compile(r"Zq(\d{5,})Wk|(?<!\d)7073(\d{6})(?:\.7073|7073)(?!\d)")
"""An id of 9 characters, because some templates count them; an integer; a float."""
ANY = re.compile(f"{MARK.pattern}|{DETAIL.pattern}")
MOST_NUMBERS = 10**6
ID_LENGTH = 9
"""Some templates write only the last characters of an id."""
OPENING = re.compile(r"\s*(?:[<\[◁]\S{1,30}?[>\]▷])?")
"""The tag that opens thoughts, if there is one."""
THOUGHT = "</think>"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Where transformers looks for thoughts; the first key present is used."""
Kind = Literal["words", "thought", "call"]
Put = Callable[[Kind, Any], Any]
"""Replaces a text with content by a mark."""
NOTHING = Code()


class Piece(NamedTuple):
    """A turn's content, or a part of it, that a mark replaces, without the white space around it.

    A tuple, like `spans.Span`, for speed: there are many for every row.
    """

    turn: int
    role: str
    kind: Kind
    text: str


class Marked(NamedTuple):
    """Turns with marks, and what each mark replaces, by its number."""

    turns: list[dict[str, Any]]
    pieces: list[Piece]
    details: list[str]
    """What marks of the pattern `DETAIL` replace, as a template writes it."""


def mark(number: int) -> str:
    """The mark that replaces a piece."""
    return f"Zq7Jx{number}Wk"


def numbers(text: str, begin: int = 0, end: int | None = None) -> list[int]:
    """The numbers of the marks in a text, in order."""
    return [int(match[1]) for match in MARK.finditer(text, begin, len(text) if end is None else end)]


def marked(messages: Sequence[Message], code: Code = NOTHING, *, only: int | None = None, role: str = "") -> Marked:
    """The turns with marks for words; or `only` one turn, or the turns of one `role`, and then not ids and numbers."""
    everything = only is None and not role
    marks = _Marks(code, details=everything)
    turns = [dict(message) for message in messages]
    for turn, message in enumerate(turns):
        if everything or turn == only or message["role"] == role:
            marks.put_into(turn, message)
    return Marked(turns, marks.pieces, marks.details)


def signature(turns: Sequence[Message]) -> str:
    """The same string for turns with marks that templates write alike; rarely used keys do not count."""
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
        """Replace what a turn says by marks."""
        role, content = message["role"], message.get("content")

        def put(kind: Kind, text: Any) -> Any:
            words = text.strip() if isinstance(text, str) else ""
            if not words:
                return text  # templates test for empty content, which a mark would hide
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
        """The assistant's content: thoughts up to the last tag at which the template splits it, then words."""
        tags = (THOUGHT, *self._code.closings)
        tag = next((candidate for candidate in tags if isinstance(content, str) and candidate in content), None)
        if tag is None:
            return put("words", content)
        before, _, words = content.rpartition(tag)
        opening = OPENING.match(before)
        start = opening.end() if opening else 0
        return before[:start] + put("thought", before[start:]) + tag + put("words", words)

    def _between_tags(self, content: Any, put: Put) -> Any:
        """What others say: a tag at either end stays if the template looks for it there."""
        if not isinstance(content, str):
            return put("words", content)
        inside = content.strip()
        start = next((tag for tag in self._code.starts if inside.startswith(tag)), "")
        end = next((tag for tag in self._code.ends if inside[len(start) :].endswith(tag)), "")
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
        result = {**call, "function": function} if "function" in call else function
        return {**result, "id": self._id(result["id"])} if "id" in result else result

    def _values(self, value: Any, put: Put) -> Any:
        if isinstance(value, Mapping):
            return {key: self._values(item, put) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._values(item, put) for item in value]
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
        """The same mark for the same id: templates use it to match a result to its call."""
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
    for _, arguments in _functions(turn):
        yield from _names(arguments)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _names(item)


def quotations(text: str) -> Iterator[str]:
    """How a template may write text in calls and results: unchanged, as JSON, or as Python."""
    yield text
    yield (written := json.dumps(text, ensure_ascii=False)[1:-1])
    yield json.dumps(text)[1:-1]
    yield json.dumps(written, ensure_ascii=False)[1:-1]  # arguments as text within JSON
    yield repr(f'"{text}')[2:-1]  # between single quotes


def details(text: str) -> Iterator[str]:
    """How a template may write an id or a number: unchanged, or only its end."""
    yield text
    yield text[-ID_LENGTH:]
