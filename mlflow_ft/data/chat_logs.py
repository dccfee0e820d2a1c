"""Logs of chats between people, in which nobody is called user or assistant: whose words are to be learned?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft.data.shapes import FEW, Fits

AUTHOR_KEYS = (
    *("role", "from", "speaker", "sender", "author", "user", "user_name", "username"),
    *("sender_name", "name", "nickname"),
)
SAID_KEYS = ("content", "text", "message", "body", "value")


def ways(roots: Sequence[Any], fits: Fits) -> list[str]:
    """What to write, where the first values of a file are such a log; [] where they are none."""
    log = next((found for found in _lists_in(roots) if len(_speakers(found)) > 1), None)
    if log is None or fits([{"messages": [{"role": _speaker(one), "content": _words(one)} for one in log]}]):
        return []
    speakers = list(dict.fromkeys(_speakers(log)))
    asked, answered = _first_said(log, speakers[0]), _first_said(log, speakers[1])
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    named = ", ".join(repr(one[:40]) for one in speakers[:6]) + " ..." * (len(speakers) > 6)
    named_one = f"if {speakers[1][:40]!r} is meant:"
    return [
        f"it is a log of what people wrote ({named}); nothing in it says whose words are to be learned",
        f"write a conversation a line (.jsonl), with that person as the assistant, others as the user; {named_one}",
        f"  {json.dumps({'messages': turns}, ensure_ascii=False)}",
    ]


def _lists_in(roots: Sequence[Any]) -> Iterator[list[Any]]:
    yield [one for one in roots if isinstance(one, Mapping)]
    for root in roots[:1]:
        for one in root.values() if isinstance(root, Mapping) else ():
            if isinstance(one, list):
                yield [inner for inner in one[:FEW] if isinstance(inner, Mapping)]


def _speakers(log: Sequence[Mapping[str, Any]]) -> list[str]:
    return [speaker for one in log if (speaker := _speaker(one)) and _words(one)]


def _speaker(one: Mapping[str, Any]) -> str:
    for key in AUTHOR_KEYS:
        value = one.get(key)
        found = value if isinstance(value, str) else _speaker(value) if isinstance(value, Mapping) else ""
        if found:
            return found
    return ""


def _words(one: Mapping[str, Any]) -> str:
    return next((one[key] for key in SAID_KEYS if isinstance(one.get(key), str) and one[key].strip()), "")


def _first_said(log: Sequence[Mapping[str, Any]], speaker: str) -> str:
    said = next(_words(one) for one in log if _speaker(one) == speaker and _words(one))
    return said if len(said) <= 80 else f"{said[:79]}…"
