"""Marks in place of what is said, so that a rendered conversation shows what its chat template adds, and where.

    {"role": "user", "content": "Hi!\\n"}      {"role": "user", "content": "Zq7Jx0Wk\\n"}
    {"role": "assistant", "content": "Yo"}    {"role": "assistant", "content": "Zq7Jx1Wk"}

White space around the words stays, because templates trim it. Thoughts, the names of functions and their arguments get
marks of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mlflow_ft.rows import Message

MARK = re.compile(r"Zq7Jx(\d+)Wk")
"""Letters and digits alone, which no template trims, splits or escapes."""
THINK, THOUGHT = "<think>", "</think>"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Under which of them transformers finds what was thought, the first that is there."""
Kind = Literal["words", "thought", "call"]
Put = Callable[[Kind, Any], Any]
"""Puts a mark in place of a text that says something."""


class Piece(NamedTuple):
    """What a turn says, or a part of it, for which a mark stands, without the white space around it.

    A tuple, as `spans.Span` is: they are made for every row, and quickly.
    """

    turn: int
    role: str
    kind: Kind
    text: str


def mark(number: int) -> str:
    """The letters that stand for a piece."""
    return f"Zq7Jx{number}Wk"


def numbers(text: str, begin: int = 0, end: int | None = None) -> list[int]:
    """The marks in a text, from the first to the last."""
    return [int(found[1]) for found in MARK.finditer(text, begin, len(text) if end is None else end)]


def marked(messages: Sequence[Message], only: int | None = None) -> tuple[list[dict[str, Any]], list[Piece]]:
    """The turns with marks for words, or `only` one turn so; and by number what the marks stand for."""
    pieces: list[Piece] = []
    found = [dict(message) for message in messages]
    for turn, message in enumerate(found):
        if only is None or only == turn:
            _mark(turn, message, pieces)
    return found, pieces


def signature(turns: Sequence[Message]) -> str:
    """The same for turns with marks that templates write alike; keys that few of them know do not count."""
    known = ("role", "content", *THOUGHT_KEYS)
    return repr([([turn.get(key) for key in known], _functions(turn)) for turn in turns])


def _mark(turn: int, message: dict[str, Any], pieces: list[Piece]) -> None:
    role, content = message["role"], message.get("content")

    def put(kind: Kind, text: Any) -> Any:
        words = text.strip() if isinstance(text, str) else ""
        if not words:
            return text  # templates ask whether something is said; a mark would say so
        pieces.append(Piece(turn, role, kind, words))
        return text.replace(words, mark(len(pieces) - 1), 1)

    if role == "assistant":
        if thoughts := [key for key in THOUGHT_KEYS if message.get(key) is not None]:
            message |= dict.fromkeys(thoughts, put("thought", message[thoughts[0]]))
        if isinstance(content, str) and THOUGHT in content:
            before, _, words = content.rpartition(THOUGHT)
            opening = before[: len(before) - len(before.lstrip().removeprefix(THINK))]
            content = opening + put("thought", before[len(opening) :]) + THOUGHT + put("words", words)
        else:
            content = put("words", content)
        if message.get("tool_calls"):
            message["tool_calls"] = [_call(call, put) for call in message["tool_calls"]]
    else:
        content = put("words", content)
    if content is not None:
        message["content"] = content


def _call(call: Mapping[str, Any], put: Put) -> dict[str, Any]:
    function = dict(call.get("function", call))
    function["name"] = put("call", function.get("name"))
    if "arguments" in function:
        function["arguments"] = _values(function["arguments"], put)
    return {**call, "function": function} if "function" in call else function


def _values(value: Any, put: Put) -> Any:
    if isinstance(value, Mapping):
        return {key: _values(one, put) for key, one in value.items()}
    return [_values(one, put) for one in value] if isinstance(value, list | tuple) else put("call", value)


def _functions(turn: Message) -> list[Any]:
    calls = [call.get("function", call) for call in turn.get("tool_calls") or ()]
    return [(call.get("name"), call.get("arguments")) for call in calls]


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
