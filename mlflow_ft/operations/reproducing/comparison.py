"""Two runs number by number: curves and scores, bit for bit or within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config

if TYPE_CHECKING:
    from mlflow_ft.tracking.curves import Curves

FLOAT32, LOWER = 1e-3, 1e-2
"""Tolerances for losses: of a training in float32, and of one in 16 bits or on a quantised base."""
ROUNDING = 1e-4
"""A difference below this is rounding; a different row, weight or setting shows as more."""
TIMES = ("runtime", "per_second", "step_time", "_seconds")
"""Ends of the names of metrics that measure time."""
SCORES = ("eval/base/", "eval/tuned/")
ENDS = ("train/steps", "train/mean_loss")
"""Numbers that are logged at step 0 when the training has ended."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How two numbers are compared."""

    exact: bool
    """Bit for bit; otherwise within the tolerance, by losses alone."""
    tolerance: float
    """Relative, and absolute below 1."""

    def decides(self, name: str) -> bool:
        """Whether the metric decides. Within a tolerance only losses do: one sampled token, or one row on the other
        side of a threshold, changes other metrics by more than any rounding."""
        return self.exact or name.rpartition("/")[2] in ("loss", "mean_loss", "good_loss")

    def same(self, one: float | None, other: float | None) -> bool:
        """Whether two values are the same; None is a missing point."""
        if one is None or other is None or math.isnan(one) or math.isnan(other):
            return (one is None) == (other is None) and _is_nan(one) == _is_nan(other)
        if self.exact:
            return one == other
        return math.isclose(one, other, rel_tol=self.tolerance, abs_tol=self.tolerance)

    def __str__(self) -> str:
        return "bit for bit" if self.exact else f"losses within {self.tolerance:g}"


BITS = Rule(exact=True, tolerance=0)


def default_tolerance(config: Config, *, lower: bool) -> float:
    """The tolerance for a training; `lower` is whether it computes in 16 bits."""
    return LOWER if lower or config.model.quantize != "none" else FLOAT32


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of both runs."""

    name: str
    points: int
    identical: bool
    """Bit for bit, whatever the rule."""
    same: bool
    """By the rule."""
    decides: bool
    largest: float
    """The largest absolute difference; infinite where a point is missing or only one is NaN."""
    step: int | None = None
    """The first step at which the two differ, by the rule; `then` and `now` are the values there."""
    then: float | None = None
    now: float | None = None
    began: float = 0.0
    """The absolute difference at the first step at which they are not the same bit for bit."""

    @property
    def grown(self) -> bool:
        """Whether the difference began as rounding: far below what is now a difference."""
        return 0 < self.began < ROUNDING

    @property
    def curve(self) -> bool:
        """Whether it is a curve over steps, not a number at the end."""
        return not self.name.startswith(SCORES) and self.name not in ENDS


def compare(then: Curves, now: Curves, rule: Rule) -> list[Compared]:
    """Every metric of either run that does not measure time, by name."""
    names = sorted({*then, *now})
    return [_compare(name, then.get(name, {}), now.get(name, {}), rule) for name in names if not name.endswith(TIMES)]


def _compare(name: str, then: Mapping[int, float], now: Mapping[int, float], rule: Rule) -> Compared:
    steps = sorted({*then, *now})
    pairs = [(step, then.get(step), now.get(step)) for step in steps]
    step, before, after = next((pair for pair in pairs if not rule.same(*pair[1:])), (None, None, None))
    distances = [_distance(*pair[1:]) for pair in pairs]
    return Compared(
        name=name,
        points=len(steps),
        identical=not any(distances),
        same=step is None,
        decides=rule.decides(name),
        largest=max(distances, default=0.0),
        step=step,
        then=before,
        now=after,
        began=next(filter(None, distances), 0.0),
    )


def _distance(one: float | None, other: float | None) -> float:
    if one is None or other is None or math.isnan(one) or math.isnan(other):
        return 0.0 if BITS.same(one, other) else math.inf
    return abs(one - other)


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def first(compared: Collection[Compared]) -> Compared | None:
    """The difference to report: the earliest on a deciding curve, a loss before others; else that of a score."""
    differing = [metric for metric in compared if metric.decides and not metric.same]
    return min(differing, key=lambda metric: (not metric.curve, metric.step or 0, *_rank(metric.name)), default=None)


def _rank(name: str) -> tuple[bool, bool, str]:
    """Training curves before held-out ones, losses before what is derived from them."""
    return (not name.endswith("loss"), not name.startswith("train/"), name)
