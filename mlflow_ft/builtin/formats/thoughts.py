"""Thoughts of an answer: between tags in its text, under a key of its turn, or in a column beside it.

{"role": "assistant", "content": "<think>2 + 2</think>4"}
{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
{"prompt": "2 + 2?", "completion": "4", "reasoning_content": "2 + 2"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mlflow_ft import Message

KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that chat templates read."""
CLOSING = "</think>"
OPENING = re.compile(r"\s*([<\[◁])((?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning))([>\]▷])", re.IGNORECASE)
COLUMN = re.compile(
    r"(?:^|_)(?:thoughts?|think|thinking|reasoning|rationale|cot|scratchpad|monologue)"
    r"(?:_(?:content|text|traces?|details|process|steps|chain|trajectory))?$"
)
"""Names of columns that hold thoughts, in small letters and joined by underscores."""
MODES = frozenset(
    (
        *("", "on", "off", "yes", "no", "true", "false", "none", "null", "nan", "n/a", "0", "1"),
        *("auto", "enabled", "disabled", "minimal", "low", "medium", "high", "xhigh", "max"),
    )
)
"""What such a column says where it is about thoughts and holds none."""


class Written(NamedTuple):
    """Thoughts at the beginning of a text."""

    text: str
    end: int
    """Where the text goes on after the closing tag."""
    is_opened: bool
    """Whether an opening tag comes first; a prompt may end with it."""


def written(content: Any) -> Written | None:
    """The thoughts between tags at the beginning of an answer; None where there are none."""
    if not isinstance(content, str):
        return None
    opened = OPENING.match(content)
    start, closing = (opened.end(), _closing(opened)) if opened else (0, CLOSING)
    end = content.find(closing, start)
    return Written(content[start:end], end + len(closing), bool(opened)) if end >= 0 else None


def unclosed(content: str) -> str | None:
    """The tag that opens an answer's thoughts, where none closes them."""
    opened = OPENING.match(content)
    if opened is None or any(closing in content for closing in (_closing(opened), CLOSING)):
        return None
    return opened[0].strip()


def _closing(opened: re.Match[str]) -> str:
    return f"{opened[1]}/{opened[2]}{opened[3]}"


def once(message: dict[str, Any]) -> dict[str, Any]:
    """A turn whose thoughts are in one place, where its text and a key both have them.

    Raises:
        ValueError: they differ.
    """
    there = [key for key in KEYS if isinstance(message.get(key), str)]
    key = next((key for key in there if message[key].strip()), there[0] if there else None)
    inside = written(message.get("content")) if key else None
    if key is None or inside is None:
        return message
    own, said = message[key].strip(), inside.text.strip()
    if not own:
        return {name: value for name, value in message.items() if name not in KEYS}
    if said in ("", own):
        return {**message, "content": message["content"][inside.end :].lstrip()}
    if not inside.is_opened:  # the text may be about the tag
        return message
    raise ValueError(f"has one thought in `content` and another in `{key}`; keep the right one")


# --- columns


def with_thought(values: Mapping[str, Any], answer: Sequence[Message]) -> list[Message]:
    """An answer with the thought from the row's first column of a name that templates know.

    It stays as it is where it thinks already, and where it has several turns of the assistant.
    """
    spoken = [place for place, turn in enumerate(answer) if turn["role"] == "assistant"]
    column = next((key for key in KEYS if isinstance(values.get(key), str) and is_thought(values[key])), None)
    turns = list(answer)
    if column and len(spoken) == 1 and not thoughts_of(turns[spoken[0]]):
        turns[spoken[0]] = {**turns[spoken[0]], column: values[column]}
    return turns


def thoughts_of(turn: Message) -> list[str]:
    """What a turn of the assistant thinks, under keys and in its text."""
    if turn["role"] != "assistant":
        return []
    inside = written(turn.get("content"))
    own = [turn[key] for key in KEYS if isinstance(turn.get(key), str) and turn[key].strip()]
    return [*own, *([inside.text] if inside and inside.text.strip() else [])]


@lru_cache(1024)
def names_thoughts(name: str) -> bool:
    """Whether a column has a name for thoughts."""
    return bool(COLUMN.search(re.sub(r"\W+", "_", name).lower()))


def is_thought(value: Any) -> bool:
    """Whether a value of such a column holds thoughts: a mode (`on`, `high`) or a number does not."""
    if isinstance(value, str):
        return value.strip().lower() not in MODES
    return isinstance(value, Mapping | list | tuple) and bool(value)
