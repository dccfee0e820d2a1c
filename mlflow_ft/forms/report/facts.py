"""What a report is written from: a run's records, whether it has just ended or is years old."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.gates import Gates
from mlflow_ft.forms import changes
from mlflow_ft.values import Score

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import Store

BASE, TUNED = "eval/base/", "eval/tuned/"
NOT_SCORES = "_coverage"
LIMITS_FILE = "limits.md"
CURVES = ("train/loss", "train/learning_rate", "eval/loss")
Answer = Mapping[str, Any]
"""A row of `eval/answers.json`: prompt, expected, base, tuned, and whether they match."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The records of one run."""

    run: Run
    curves: Mapping[str, Mapping[int, float]]
    base: Sequence[Score]
    tuned: Sequence[Score]
    by_score: Mapping[str, changes.Change]
    """How each score changed."""
    aims: Sequence[str] = ()
    """The method's own scores, in order of preference."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """For each score with row values, the digest of its rows."""
    verdict: changes.Verdict | None
    answers: Sequence[Answer]
    quality: Mapping[str, Any]
    """`data/quality.json`; empty if the run has none."""
    mask: str
    """`data/mask.txt`, in which what is learned is between [[ and ]]."""
    limits: str = ""
    """What the run did not show: the model card's section, a Markdown list."""

    def curve(self, name: str) -> dict[int, float]:
        """The finite values of a curve by step, in order; empty if the run has no such curve."""
        found = self.curves.get(name, {})
        return {step: value for step, value in sorted(found.items()) if math.isfinite(value)}

    @property
    def started(self) -> str:
        """When the run began, in words."""
        return f"{datetime.fromtimestamp(self.run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC"

    @property
    def metrics(self) -> Mapping[str, float]:
        return dict(self.run.data.metrics)

    @property
    def tags(self) -> Mapping[str, str]:
        return dict(self.run.data.tags)


def gathered(store: Store, run_id: str, *, lower_is_better: Collection[str] = ()) -> Facts:
    """Read the records of a run.

    Args:
        store: The server that has the run.
        run_id: The run.
        lower_is_better: Scores of plugins that are better when they are lower.

    Raises:
        TrackingError: the server does not answer, or has no such run.
    """
    from mlflow_ft.tracking.contenders import ANSWERS_FILE, QUALITY_FILE, ROWS_FILE

    run = store.run(run_id)
    kept: Mapping[str, Any] = store.read(run_id, ROWS_FILE) or {}
    base, tuned = (_scores(run, kept, side, prefix) for side, prefix in (("base", BASE), ("tuned", TUNED)))
    found = changes.of(base, tuned, Gates().knowing(lower_is_better))
    own: Mapping[str, str] = kept.get("digests") or {}
    table: Mapping[str, Any] = store.read(run_id, ANSWERS_FILE) or {}
    return Facts(
        run=run,
        curves=store.curves(run, prefixes=CURVES),
        base=base,
        tuned=tuned,
        by_score=found,
        aims=tuple(kept.get("aims", ())),
        rows={score.name: own.get(score.name, kept.get("digest", "")) for score in tuned if score.rows},
        verdict=changes.verdict(kept.get("aims", ()), base, tuned, found),
        answers=[dict(zip(table["columns"], row, strict=True)) for row in table.get("data", ())],
        quality=store.read(run_id, QUALITY_FILE) or {},
        mask=store.read(run_id, "data/mask.txt") or "",
        limits=store.read(run_id, LIMITS_FILE) or "",
    )


def _scores(run: Run, kept: Mapping[str, Any], side: str, prefix: str) -> list[Score]:
    rows = kept.get("scores", {}).get(side, {})
    values = {
        name.removeprefix(prefix): value
        for name, value in run.data.metrics.items()
        if name.startswith(prefix) and not name.endswith(NOT_SCORES)
    }
    lower = kept.get("lower_is_better", {})
    names = [*(name for name in rows if name in values), *sorted(name for name in values if name not in rows)]
    return [
        Score(name=name, value=values[name], rows=tuple(rows.get(name, ())), lower_is_better=lower.get(name))
        for name in names
    ]
