"""By how much each score became better in training, with intervals, and whether the one that counts did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow_ft.candidacy import aimed_at
from mlflow_ft.config.gates import Gates
from mlflow_ft.forms.card.markdown import number
from mlflow_ft.values import Score

CONFIDENCE = 0.975
"""Of each end of an interval of 95 %."""


@dataclass(frozen=True)
class Change:
    """By how much a score is better, with an interval if it has values of the same rows on both sides."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    lower_is_better: bool = False

    def around(self, before: float) -> tuple[float, float] | None:
        """Between which values the score lies after a change of this interval; None without an interval.

        Args:
            before: The score before the change, in its own unit.
        """
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        low, high = (-self.high, -self.low) if self.lower_is_better else (self.low, self.high)
        return before + low, before + high

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return ""
        if self.value == 0 and self.low == 0 == self.high:
            return "none"
        words = f"better by {number(self.value)}" if self.value >= 0 else f"worse by {number(-self.value)}"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"{words}, too few rows for an interval"
        low, high = (self.low, self.high) if self.value >= 0 else (-self.high, -self.low)
        return f"{words} ({number(low)} to {number(high)})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the score that a method is for became better."""

    score: str
    base: float
    tuned: float
    better: bool

    @property
    def words(self) -> str:
        return "Better than its base" if self.better else "Not shown to be better than its base"


def of(base: Sequence[Score], tuned: Sequence[Score], gates: Gates) -> dict[str, Change]:
    """The change of each score of the tuned model; `gates` knows which are better when lower."""
    before = {score.name: score for score in base}
    return {score.name: between(before.get(score.name), score, gates) for score in tuned}


def between(before: Score | None, after: Score, gates: Gates, *, confidence: float = CONFIDENCE) -> Change:
    """By how much `after` is better on the same rows; `confidence` is that of each end of the interval."""
    from mlflow_ft.engine.judging.paired import paired_test, row_differences

    if before is None or not after.rows or len(before.rows) != len(after.rows):
        return Change()
    if not all(math.isfinite(value) for value in (*before.rows, *after.rows) if value is not None):
        return Change()
    lower = after.is_lower(gates)
    better_by = row_differences(after.rows, before.rows, lower_is_better=lower)
    if not better_by:
        return Change()
    up = paired_test(better_by, margin=0.0, confidence=confidence)
    down = paired_test([-value for value in better_by], margin=0.0, confidence=confidence)
    return Change(up.difference, up.low, -down.low, lower_is_better=lower)


def verdict(
    aims: Sequence[str], base: Sequence[Score], tuned: Sequence[Score], found: Mapping[str, Change]
) -> Verdict | None:
    """Whether the score that the method is for became better; None if that was not measured row by row."""
    sides = [{score.name: score for score in side} for side in (base, tuned)]
    aim = aimed_at(aims, *({name: score.rows for name, score in side.items() if score.rows} for side in sides))
    change = found.get(aim or "")
    if aim is None or change is None or change.low is None:
        return None
    before, after = sides
    return Verdict(score=aim, base=before[aim].value, tuned=after[aim].value, better=change.low > 0)
