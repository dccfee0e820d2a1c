"""Small rows of every kind that a tiny model can learn, and the evidence of a promotion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_ft.candidacy import Candidacy, Contender
from mlflow_ft.rows import Kind

WORDS = ("red", "green", "blue", "round", "flat", "heavy", "small", "apple", "stone", "river", "lamp", "door", "song")
NOW_MS = 1_700_000_000_000


def make_rows(count: int = 48) -> list[dict[str, Any]]:
    """Conversations that a tiny model can memorise: the answer repeats the question's words in reverse."""
    rows = []
    for number in range(count):
        words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 5, 7)]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": " ".join(words)},
                    {"role": "assistant", "content": " ".join(reversed(words))},
                ]
            }
        )
    return rows


def rows_of_kind(kind: Kind, count: int = 48) -> list[dict[str, Any]]:
    """The same as rows of any kind, in a format that is built in."""
    if kind == "conversation":
        return make_rows(count)
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(make_rows(count)):
        asked, answered = (turn["content"] for turn in row["messages"])
        forms: dict[str, dict[str, Any]] = {
            "text": {"text": f"{asked} {answered}"},
            "preference": {"prompt": asked, "chosen": answered, "rejected": asked},
            "unpaired": {"prompt": asked, "completion": answered if number % 2 else asked, "label": bool(number % 2)},
            "prompt": {"prompt": asked, "answer": answered},
        }
        rows.append(forms[kind])
    return rows


def write_jsonl(file: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_candidacy() -> Candidacy:
    """A first version of a model whose loss fell from about 2 to about 1 on 40 held-out rows; nothing has the alias.

    `dataclasses.replace` changes a part of it.
    """
    base, tuned = (tuple(loss + number / 100 for number in range(40)) for loss in (2.0, 1.0))
    metrics = {"eval/base/loss": sum(base) / len(base), "eval/tuned/loss": sum(tuned) / len(tuned)}
    candidate = Contender(
        name="small-lora",
        version=1,
        run_id="0" * 32,
        model_id="m-" + "0" * 32,
        tags={},
        described=True,
        status="FINISHED",
        ended_ms=NOW_MS,
        params={"cfg.method": "lora"},
        metrics=metrics,
        quality={"checks": []},
        eval_digest="0" * 32,
        rows={"loss": tuned},
        base_rows={"loss": base},
        base="small",
        aims=("loss",),
    )
    return Candidacy(alias="champion", candidate=candidate, champion=None, now_ms=NOW_MS)
