"""A judge's reply read: exactly one valid verdict in JSON, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_ft_judge.engine.prompts import Question

THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
DEEPEST = 20
"""Objects of a reply that are tried, at most."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge decided, and why."""

    value: Any
    """A number of the scale, or A, B or tie."""
    reason: str = ""


def read(text: str, question: Question) -> Verdict | None:
    """The verdict in a reply; None if there is none, or several that differ.

    The JSON may stand in fences or after other words, and may be broken elsewhere.
    """
    text = THOUGHTS.sub("", text)
    found = [verdict for values in _objects(text) if (verdict := _verdict(values, question))]
    if not found:
        found = [Verdict(value=value) for value in _loose(text, question)]
    return found[-1] if len({verdict.value for verdict in found}) == 1 else None


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a text, not those within another."""
    decoder, start, tried = json.JSONDecoder(strict=False), text.find("{"), 0
    while start >= 0 and tried < DEEPEST:
        tried += 1
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _verdict(values: Mapping[str, Any], question: Question) -> Verdict | None:
    value = _valid(values.get(question.key), question)
    reason = values.get("reason", "")
    return None if value is None else Verdict(value=value, reason=reason if isinstance(reason, str) else "")


def _valid(value: Any, question: Question) -> Any:
    """One of the question's choices, however it is written; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, str)):
        by_text = {str(choice).lower(): choice for choice in question.choices}
        return by_text.get(str(value).strip().lower())
    return None


def _loose(text: str, question: Question) -> Iterator[Any]:
    """Complete verdicts in JSON that is broken elsewhere, as by a quotation mark in the reason."""
    for written in re.findall(rf'"{question.key}"\s*:\s*("[^"\n]*"|-?\d+)\s*[,}}]', text):
        value = _valid(written.strip('"'), question)
        if value is not None:
            yield value
