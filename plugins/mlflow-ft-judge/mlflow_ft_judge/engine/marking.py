"""Answers marked by a rubric: each judge, each repeat; a row without one of the marks has no score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow_ft import Answer
from mlflow_ft_judge.engine import agreement, prompts
from mlflow_ft_judge.engine.asking import Asked, Judgement
from mlflow_ft_judge.settings import Rubric


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The marks of all answers by one rubric."""

    rubric: Rubric
    readings: Sequence[Sequence[Judgement]]
    """For each judge and repeat, the judgement of every answer."""

    @property
    def rows(self) -> list[float | None]:
        """The mean of the marks of each answer; None if one is missing."""
        return [_mean([judgement.value for judgement in row]) for row in zip(*self.readings, strict=True)]

    @property
    def agreement(self) -> tuple[float, float] | None:
        """Share of equal marks and kappa, averaged over all pairs of readings; None if there is one reading."""
        choices = range(self.rubric.scale[0], self.rubric.scale[1] + 1)
        values = [[judgement.value for judgement in reading] for reading in self.readings]
        pairs = list(itertools.combinations(values, 2))
        if not pairs:
            return None
        shares = [agreement.share(one, other) for one, other in pairs]
        kappas = [agreement.kappa(one, other, choices) for one, other in pairs]
        return _known_mean(shares), _known_mean(kappas)


def mark(
    rubric: Rubric, answers: Sequence[Answer], judges: Sequence[Asked], *, repeats: int, done: Callable[[], object]
) -> Marks:
    """Have every answer marked by every judge, `repeats` times."""
    questions = [prompts.mark(rubric, answer) for answer in answers]
    readings = [judge.all(questions, repeat=repeat, done=done) for judge in judges for repeat in range(repeats)]
    return Marks(rubric=rubric, readings=readings)


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
