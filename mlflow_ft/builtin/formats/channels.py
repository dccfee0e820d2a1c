"""Thoughts and answers as OpenAI's Harmony writes them: two turns of the assistant, each in a channel of its own.

{"role": "assistant", "channel": "analysis", "content": "2 + 2"}    {"role": "assistant", "thinking": "2 + 2",
{"role": "assistant", "channel": "final", "content": "4"}            "content": "4"}
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mlflow_ft.builtin.formats.thoughts import KEYS

THOUGHT, CALL, ANSWER = "analysis", "commentary", "final"
_REMEDY = "put the text into `thinking` of the answer"


class _Thought(NamedTuple):
    number: int
    text: str
    wish: bool | None


def joined(
    messages: list[dict[str, Any]], wishes: list[bool | None], column: str
) -> tuple[list[dict[str, Any]], list[bool | None]]:
    """The turns, with each thought in the turn that follows it, and their wishes to be learned.

    Raises:
        ValueError: a thought has no answer, or a channel holds something else.
    """
    if not any("channel" in message for message in messages):
        return messages, wishes
    turns: list[dict[str, Any]] = []
    kept: list[bool | None] = []
    thought: _Thought | None = None
    for number, (message, wish) in enumerate(zip(messages, wishes, strict=True), 1):
        channel = message.get("channel") if message["role"] == "assistant" else None
        try:
            if thought:
                message = _thinking(message, thought.text)
                if wish != thought.wish:
                    raise ValueError("and its answer disagree on whether they are learned; write it in both or neither")
            elif channel == THOUGHT:
                thought = _Thought(number, _text(message), wish)
                continue
            elif channel == CALL and "tool_calls" not in message:
                raise ValueError("has `channel`: commentary, but no `tool_calls`; put the call there")
            elif channel in (CALL, ANSWER):
                message = _without(message)
        except ValueError as error:
            raise ValueError(f"turn {thought.number if thought else number} of `{column}` {error}") from error
        thought = None
        turns.append(message)
        kept.append(wish)
    if thought:
        raise ValueError(f"turn {thought.number} of `{column}` {_unanswered()}")
    return turns, kept


def _thinking(message: dict[str, Any], thought: str) -> dict[str, Any]:
    """A turn with the thought before it."""
    channel, calls = message.get("channel"), "tool_calls" in message
    if message["role"] != "assistant" or not (channel == ANSWER or (calls and channel in (CALL, None))):
        raise ValueError(_unanswered())
    if any(message.get(key) for key in KEYS):
        raise ValueError(f"has `channel`: {THOUGHT}, and the answer has thoughts of its own; keep one of them")
    return {**_without(message), "thinking": thought}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str) or "tool_calls" in message:
        raise ValueError(f"has `channel`: {THOUGHT}, but is not text; {_REMEDY}")
    return content


def _without(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "channel"}


def _unanswered() -> str:
    return f"has `channel`: {THOUGHT}, but no turn with `channel`: {ANSWER} follows; {_REMEDY}"
