"""Answers of both models to the held-out prompts, as the table that a run keeps: what went wrong first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_ft.values import Scores

KINDS = {(True, False): "broken", (False, False): "differs", (False, True): "fixed", (True, True): "as before"}
"""By whether the base's and the tuned model's answers are what is expected; the worst first."""
RANKS = {kind: rank for rank, kind in enumerate(KINDS.values())}


def table(scores: Scores) -> list[dict[str, Any]]:
    """A row for each held-out prompt: what training broke, what is still wrong, what it fixed, the rest.

    `row` is the prompt's place among the held-out rows, from 1.
    """
    rows = [
        {
            "row": number,
            "prompt": base.asked,
            "expected": base.expected,
            "base": base.text,
            "tuned": tuned.text,
            "base_exact": base.text.strip() == base.expected.strip(),
            "tuned_exact": tuned.text.strip() == tuned.expected.strip(),
        }
        for number, (base, tuned) in enumerate(scores.answers, 1)
    ]
    return sorted(rows, key=rank)


def kind(row: Mapping[str, Any]) -> str:
    """What training did to the answer of a row of the table."""
    return KINDS[bool(row.get("base_exact")), bool(row.get("tuned_exact"))]


def rank(row: Mapping[str, Any]) -> int:
    """0 for the rows to look at first."""
    return RANKS[kind(row)]
