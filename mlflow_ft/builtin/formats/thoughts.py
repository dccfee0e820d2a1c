"""Thoughts between tags in the text of an answer: `<think>2 + 2</think>4`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

CLOSING = "</think>"
OPENING = re.compile(r"\s*([<\[◁])((?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning))([>\]▷])", re.IGNORECASE)


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


def _closing(opened: re.Match[str]) -> str:
    return f"{opened[1]}/{opened[2]}{opened[3]}"
