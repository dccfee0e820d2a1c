"""The data formats that ship inside: chat messages, Alpaca, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft import DataError, DataFormat, Example, hookimpl

ROLES = ("system", "user", "assistant", "tool", "developer")


def from_messages(values: Mapping[str, Any]) -> Example:
    """`{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}`, OpenAI's shape."""
    turns = values.get("messages")
    if not isinstance(turns, list) or not turns:
        raise ValueError("`messages` is no list of turns")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} of `messages` is no object with `role` and `content`")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise ValueError(f"turn {number} of `messages` has role {role!r}; known: {', '.join(ROLES)}")
        if not isinstance(content, str) and not turn.get("tool_calls"):
            raise ValueError(f"turn {number} of `messages` has no text in `content`")
        # Arrow fills the keys that other rows have with None; templates test whether a key is there.
        messages.append({key: value for key, value in turn.items() if value is not None})
    return Example(messages=_ending_in_an_answer(messages), tools=_tools(values.get("tools")))


def from_alpaca(values: Mapping[str, Any]) -> Example:
    """`{"instruction": "...", "input": "... or empty", "output": "..."}`, and optionally `system`."""
    instruction, output = _text(values, "instruction"), _text(values, "output")
    context = values.get("input")
    if context is not None and not isinstance(context, str):
        raise ValueError("`input` is no text")
    question = f"{instruction}\n\n{context}" if context and context.strip() else instruction
    return _question(question, output, values.get("system"))


def from_prompt_completion(values: Mapping[str, Any]) -> Example:
    """`{"prompt": "...", "completion": "..."}`; both may be lists of messages too."""
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return from_messages({"messages": [*prompt, *completion], "tools": values.get("tools")})
    return _question(_text(values, "prompt"), _text(values, "completion"), values.get("system"))


def _question(question: str, answer: str, system: Any) -> Example:
    first = ({"role": "system", "content": system},) if isinstance(system, str) and system.strip() else ()
    return Example(messages=(*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _ending_in_an_answer(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    last = max((place for place, turn in enumerate(messages) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise ValueError("`messages` has no turn of the assistant, so there is nothing to learn")
    if messages[0]["role"] == "assistant":
        raise ValueError("`messages` begins with the assistant; the first turn must be the system's or the user's")
    return tuple(messages[: last + 1])


def _text(values: Mapping[str, Any], column: str) -> str:
    if column not in values or values[column] is None:
        raise ValueError(f"column `{column}` is missing")
    value = values[column]
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is no text but {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"`{column}` is empty")
    return value


def _tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    return tuple(value) if isinstance(value, list) and value else None


@hookimpl
def register_formats() -> list[DataFormat]:
    return [
        DataFormat(
            name="messages",
            summary="OpenAI chat: a list of turns with role and content",
            columns=("messages",),
            convert=from_messages,
        ),
        DataFormat(
            name="alpaca",
            summary="instruction, optional input, output; optional system",
            columns=("instruction", "output"),
            convert=from_alpaca,
        ),
        DataFormat(
            name="prompt-completion",
            summary="prompt and completion, as texts or as lists of messages",
            columns=("prompt", "completion"),
            convert=from_prompt_completion,
        ),
    ]


@hookimpl
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    fitting = next((record.name for record in register_formats() if set(record.columns) <= set(columns)), None)
    if fitting and any(isinstance(values.get("label"), bool) for values in sample):
        raise DataError(
            "the rows have a `label` that is true or false: they are preferences, and some of them are bad answers",
            hint=f"take the bad ones out, or name the format to learn from every row: --data.format {fitting}",
        )
    return fitting
