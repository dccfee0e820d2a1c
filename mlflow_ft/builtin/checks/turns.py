"""Checks of the turns: their order, empty answers, and text that the tokenizer reads as special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_ft import Checked, Message
from mlflow_ft.builtin.checks.seen import content, said
from mlflow_ft.builtin.formats.thoughts import unclosed

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_WRITTEN_CALLS = ("<tool_call", "<functioncall", "<function_call", "<|python_tag|>", "[TOOL_CALLS]", '"arguments"')
"""How a tool call begins when it is part of the text."""


def empty_response(row: Checked) -> str | None:
    """An empty answer that is not a tool call."""
    example = row.example
    if example.text is not None:
        return "the text is empty" if _is_empty(example.text) else None
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        if any(_says_nothing(turn) for turn in answer):
            return f"the {name} answer is empty"
    for number, turn in enumerate(example.messages, 1):
        if _says_nothing(turn):
            return f"turn {number} (assistant) is empty"
    return None


def _says_nothing(turn: Message) -> bool:
    if turn["role"] != "assistant" or turn.get("tool_calls"):
        return False
    words = turn.get("content")
    return _is_empty(words) if isinstance(words, str) else not words


def _is_empty(text: str) -> bool:
    return not text.strip().strip(_INVISIBLE).strip()


def role_order(row: Checked) -> str | None:
    """Turns in an order that chat templates reject or that no conversation has."""
    turns = (*row.example.messages, *row.example.chosen)
    return next(_disorders(turns), None)


def _disorders(turns: Sequence[Message]) -> Iterator[str]:
    before: Message | None = None
    for number, turn in enumerate(turns, 1):
        wrong = _disorder(before, turn)
        if wrong:
            yield f"turn {number}: {wrong}"
        before = turn


def _disorder(before: Message | None, turn: Message) -> str | None:
    role = turn["role"]
    if role == "system":
        return None if before is None else "a system turn that is not the first"
    last = before["role"] if before else "system"
    if role == "tool":
        called = last == "tool" or (before is not None and _calls(before))
        return None if called else f"a tool result without a call (before it: {_named(before)})"
    if role == "assistant" and last == "system":
        return "the assistant speaks first"
    return f"two {role} turns in a row" if role == last else None


def _calls(turn: Message) -> bool:
    if turn["role"] != "assistant":
        return False
    return bool(turn.get("tool_calls")) or any(beginning in content(turn) for beginning in _WRITTEN_CALLS)


def _named(turn: Message | None) -> str:
    return f"a turn by the {turn['role']}" if turn else "nothing"


def special_token(row: Checked) -> str | None:
    """The text of a special token in a turn: it is read as the token, so that a turn ends or begins there."""
    for role, text in said(row):
        for token in row.special:
            if token in text and token.strip():
                return f"{_speaker(role)} contains the special token {token}"
    return None


def _speaker(role: str) -> str:
    return f"a turn by the {role}" if role else "the text"


def unclosed_thought(row: Checked) -> str | None:
    """A learned answer that begins with a thought and never ends it."""
    if row.example.label is False:  # a bad answer on purpose
        return None
    for turns, learned in row.example.conversations[:1]:
        for number, (turn, is_learned) in enumerate(zip(turns, learned, strict=True), 1):
            if is_learned and (tag := unclosed(content(turn))):
                return f"turn {number} (assistant) begins with {tag}: a thought that is not closed"
    return None


def changed(row: Checked) -> str | None:
    """What the conversion left out."""
    return "; ".join(row.example.notes) or None
