"""A paired test: is one model better than another on the same rows, by more than a margin?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AT_ONCE = 4_000_000
"""Draws that are held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The outcome, in the unit of the score, turned so that a positive difference is an improvement."""

    rows: int
    difference: float
    """Mean over the rows."""
    low: float
    """Lower end of the one-sided interval: the difference is above it with the confidence that was asked for."""
    p_value: float
    """How often a bootstrap sample does not beat the margin."""


def paired_bootstrap(
    differences: Sequence[float], *, margin: float, confidence: float, samples: int = 10_000, seed: int = 0
) -> Paired:
    """Bootstrap over rows of the mean difference (Efron and Tibshirani 1993; for models on one test set, Koehn 2004).

    Args:
        differences: Of every row by how much the one model is better than the other.
        margin: What the mean is tested to be above.
        confidence: Of the one-sided interval, 0.5 to 1.
        samples: Bootstrap samples; the same `seed` gives the same numbers.

    Raises:
        ValueError: fewer than two rows, or a difference that is no finite number.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("a paired test needs at least two rows, all with finite scores")
    draw = np.random.default_rng(seed)
    batch = max(1, AT_ONCE // len(values))
    means = np.concatenate(
        [
            values[draw.integers(len(values), size=(min(batch, samples - start), len(values)))].mean(axis=1)
            for start in range(0, samples, batch)
        ]
    )
    return Paired(
        rows=len(values),
        difference=float(values.mean()),
        low=float(np.quantile(means, 1 - confidence)),
        p_value=float((1 + (means <= margin).sum()) / (1 + samples)),
    )
