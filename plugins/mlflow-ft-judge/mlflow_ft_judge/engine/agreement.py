"""How far two readings of the same rows agree: two judges, two orders, or a judge asked twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def share(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The share of rows with the same verdict, among those with both; NaN if there are none."""
    pairs = _both(first, second)
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else math.nan


def kappa(first: Sequence[Any], second: Sequence[Any], choices: Sequence[Any]) -> float:
    """Cohen's kappa with quadratic weights (1968): agreement beyond chance, 1 is perfect, 0 what chance gives.

    `choices` are all verdicts in their order: a mark that is off by two counts four times as much as one that is off by
    one. NaN if there are no rows, or both readings give one and the same verdict throughout.
    """
    place = {choice: number for number, choice in enumerate(choices)}
    pairs = [(place[one], place[other]) for one, other in _both(first, second)]
    if not pairs:
        return math.nan
    seen = sum((one - other) ** 2 for one, other in pairs) / len(pairs)
    by_chance = sum((one - other) ** 2 for one, _ in pairs for _, other in pairs) / len(pairs) ** 2
    return 1 - seen / by_chance if by_chance else math.nan


def _both(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    pairs = zip(first, second, strict=True)
    return [(one, other) for one, other in pairs if one is not None and other is not None]
