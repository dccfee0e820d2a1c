"""Thoughts that a row keeps where no chat template looks for them: under another key, or not as text.

{"role": "assistant", "content": "4", "thought": "2 + 2"}                   another key
{"role": "assistant", "content": "4", "reasoning_details": [{"text": ...}]} a list, as some servers answer
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_ft.engine.tokens.placeholders import THOUGHT_KEYS
from mlflow_ft.rows import Message

NAMED = re.compile(r"(?:^|_)(?:thoughts?|think|thinking|reasoning|rationale|cot|scratchpad|monologue)(?:_|$)")
"""Keys of thoughts."""
ABOUT = re.compile(r"_(?:effort|budget|tokens?|time|id|signature|encrypted|mode|level|type|format|enabled|count)$")
"""Keys about thoughts that do not contain any."""
PARTS = ("text", "thinking", "reasoning", "content", "summary")


def are_lost(turn: Message, text: str, template: str) -> bool:
    """Whether an assistant's turn has thoughts that are missing from the rendered text."""
    for key, value in turn.items():
        known = key in THOUGHT_KEYS
        if (known and isinstance(value, str)) or not (known or NAMED.search(key)) or ABOUT.search(key):
            continue
        said = [thought.strip() for thought in _texts(value) if thought.strip()]
        if said and (key not in template or any(thought not in text for thought in said)):
            return True
    return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key in PARTS:
            yield from _texts(value.get(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
