"""Chat logs between people, which name no user and no assistant: whose messages should the model learn?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft.data.reading.shapes import FEW, Fits

AUTHOR_KEYS = (
    *("role", "from", "speaker", "sender", "author", "user", "user_name", "username"),
    *("sender_name", "name", "nickname"),
)
SAID_KEYS = ("content", "text", "message", "body", "value")


def ways(roots: Sequence[Any], fits: Fits) -> list[str]:
    """A hint, where the first values of a file are such a log; [] where they are not."""
    log = next((messages for messages in _lists_in(roots) if len(_speakers(messages)) > 1), None)
    if log is None or fits(
        [{"messages": [{"role": _speaker(message), "content": _words(message)} for message in log]}]
    ):
        return []
    speakers = list(dict.fromkeys(_speakers(log)))
    question, answer = _first_said(log, speakers[0]), _first_said(log, speakers[1])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    names = ", ".join(repr(speaker[:40]) for speaker in speakers[:6]) + " ..." * (len(speakers) > 6)
    return [
        f"this is a chat log ({names}); nothing in it says whose messages the model should learn",
        "write one conversation per line (.jsonl), with that person as the assistant and the others as the user;",
        f"for {speakers[1][:40]!r}:",
        f"  {json.dumps({'messages': turns}, ensure_ascii=False)}",
    ]


def _lists_in(roots: Sequence[Any]) -> Iterator[list[Any]]:
    yield [root for root in roots if isinstance(root, Mapping)]
    for root in roots[:1]:
        for value in root.values() if isinstance(root, Mapping) else ():
            if isinstance(value, list):
                yield [message for message in value[:FEW] if isinstance(message, Mapping)]


def _speakers(log: Sequence[Mapping[str, Any]]) -> list[str]:
    return [speaker for message in log if (speaker := _speaker(message)) and _words(message)]


def _speaker(message: Mapping[str, Any]) -> str:
    for key in AUTHOR_KEYS:
        value = message.get(key)
        name = value if isinstance(value, str) else _speaker(value) if isinstance(value, Mapping) else ""
        if name:
            return name
    return ""


def _words(message: Mapping[str, Any]) -> str:
    return next((message[key] for key in SAID_KEYS if isinstance(message.get(key), str) and message[key].strip()), "")


def _first_said(log: Sequence[Mapping[str, Any]], speaker: str) -> str:
    words = next(_words(message) for message in log if _speaker(message) == speaker and _words(message))
    return words if len(words) <= 80 else f"{words[:79]}…"
