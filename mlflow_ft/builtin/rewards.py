"""The built-in reward functions: the right answer, and valid JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft import Message, Reward, hookimpl
from mlflow_ft.builtin.evaluators import is_json

SOLUTIONS = ("answer", "solution", "ground_truth", "target", "expected")
"""Columns that may hold the right answer."""

Completions = Sequence[Sequence[Message]]


def exact_answer(completions: Completions, **columns: Sequence[Any]) -> list[float | None]:
    """1 where the answer ends with the row's `answer` (or `solution` ...), else 0; None without such a column.

    In an answer that begins with its reasoning, as in GSM8K, only the text after `####` counts.
    """
    expected = next((columns[name] for name in SOLUTIONS if name in columns), [None] * len(completions))
    return [
        None if wanted is None else float(_ends_with(answer_text(turns), str(wanted).rpartition("####")[2]))
        for turns, wanted in zip(completions, expected, strict=True)
    ]


def _ends_with(text: str, wanted: str) -> bool:
    words, ending = text.strip().rstrip(".").split(), wanted.strip().rstrip(".").split()
    return bool(ending) and words[-len(ending) :] == ending


def valid_json(completions: Completions, **_: Any) -> list[float]:
    """1 where the answer is strictly valid JSON, else 0."""
    return [float(is_json(answer_text(turns))) for turns in completions]


def answer_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """The text of a sampled answer."""
    return str(turns[-1].get("content") or "")


@hookimpl
def register_rewards() -> list[Reward]:
    return [
        Reward(name="exact-answer", summary="1 where the answer ends with the row's `answer`", score=exact_answer),
        Reward(name="valid-json", summary="1 where the answer is JSON", score=valid_json),
    ]
