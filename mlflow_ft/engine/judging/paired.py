"""A paired test: is one model better than another on the same rows, by more than a margin?

No test can account for losses that did not occur in the sample: if they are rare and large enough, they can mislead
every test of a mean (Bahadur and Savage 1956). So two tests must agree, each exact under its own assumption:

- the sign-flip test (Fisher 1935) in Hartigan's form (1969): exact for any number of rows if differences are
  distributed symmetrically. Its distribution is the means of all subsets of the rows; with 4 rows there are 16 subsets,
  so the confidence is at most 15 in 16.
- Gaffke's bound on a mean (2005; Learned-Miller and Thomas 2019, arXiv 1905.06208): for differences of any
  distribution, as long as no row is worse than an unseen worst one; see `worst_unseen`.

For right or wrong answers both equal McNemar's exact test. Otherwise each alone finds equal models different too often
(the sign flip up to 18 % instead of 5 % if a few rows lose much); both together do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

AT_ONCE = 4_000_000
"""Random numbers drawn at a time."""
ALL_SUBSETS = 16
"""Up to so many rows, every subset is used; with more, random ones."""
MANY = 5000
"""Number of rows from which fewer samples are enough."""
ENOUGH = 2000
"""Samples used then."""
FEW = 30
"""Rows that differ. With fewer, the sample says little about the worst unseen row: a fault in one row of ten is missed
by 29 rows with a probability of 4.7 %."""
WORSE_BY = 2.5
"""How many times as bad as the largest observed difference a row may be if few rows differ."""
POWER = 0.8
SAME = 1e-5
"""Share of the scores' mean size below which a difference is rounding: float32, in batches of different shapes."""
MOST_NEEDED = 1_000_000
"""Upper limit of the number of rows that is reported."""
ROUNDING = 1e-9
"""Share of the largest difference below which two numbers are equal."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The outcome, in the unit of the score, with the sign such that a positive difference is an improvement."""

    rows: int
    differing: int
    """Rows on which the two models have different scores."""
    difference: float
    """Mean over the rows."""
    low: float
    """Lower bound of the difference at the requested confidence; minus infinity if there are too few rows for that
    confidence. It is above the margin if and only if `p_value` is at most 1 - confidence."""
    p_value: float
    """Upper bound of the probability of such a difference between models that differ only by the margin."""
    needed: int | None
    """Rows that would show a difference of this size four times out of five; None if it is not above the margin."""


def row_differences(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, lower_is_better: bool
) -> list[float]:
    """For every row with both scores, by how much ours is better; 0 if the difference is only rounding."""
    pairs = [(our, their) for our, their in zip(ours, theirs, strict=True) if our is not None and their is not None]
    rounding = SAME * sum(abs(our) + abs(their) for our, their in pairs) / max(1, 2 * len(pairs))
    differences = [their - our if lower_is_better else our - their for our, their in pairs]
    return [difference if abs(difference) > rounding else 0.0 for difference in differences]


def paired_test(
    differences: Sequence[float], *, margin: float, confidence: float, samples: int = 10_000, seed: int = 0
) -> Paired:
    """Test whether the mean difference is above `margin`.

    Args:
        differences: For every row, by how much one model is better than the other.
        margin: The mean is tested to be above it.
        confidence: Of the one-sided bound, 0.5 to 1.
        samples: Number of random subsets and weights if there are too many for all; the same `seed` gives the same
            numbers, and p-values have the +1 of Phipson and Smyth (2010), so that they are never too small.

    Raises:
        ValueError: there are no rows, or a difference is NaN or infinite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a paired test needs at least one row, and finite scores")
    draw = np.random.default_rng(seed)
    worst = worst_unseen(values)
    samples = samples if len(values) < MANY else min(samples, ENOUGH)
    tests = [
        _outcome(means, margin=margin, confidence=confidence, tolerance=ROUNDING * float(np.abs(values).max()))
        for means in (_of_subsets(values, draw, samples), _of_weights(values, worst, draw, samples))
    ]
    return Paired(
        rows=len(values),
        differing=int(np.count_nonzero(values)),
        difference=float(values.mean()),
        low=min(low for low, _ in tests),
        p_value=max(p_value for _, p_value in tests),
        needed=rows_needed(values, margin=margin, confidence=confidence),
    )


def worst_unseen(values: Values, *, differing: int | None = None) -> float:
    """How bad an unseen row may be if `differing` of the observed rows differ.

    If all differences have the same size, as with right and wrong answers, it has that size. Otherwise, with few rows,
    it is up to 2.5 times as bad as the largest difference in either direction; with more, twice as far below the mean
    as the worst observed row. In simulations (test_paired.py) this keeps false alarms below 5 % for differences as
    skewed as a lognormal's.
    """
    seen = values[values != 0]
    count = len(seen) if differing is None else differing
    if not len(seen):
        return 0.0
    sizes = np.abs(seen)
    largest = float(sizes.max())
    if largest - float(sizes.min()) <= ROUNDING * largest:
        return -largest
    if count < FEW:
        return -min(WORSE_BY, count / 4) * largest
    mean = float(seen.mean())
    return min(2 * float(seen.min()) - mean, -mean)


def rows_needed(values: Values, *, margin: float, confidence: float) -> int | None:
    """The smallest number of rows that would show a difference like this one with a power of 80 %.

    By the normal approximation of both tests, and at least what the sign flip needs if every row is better.
    """
    mean, spread = float(values.mean()), float(values.std(ddof=min(1, len(values) - 1)))
    if mean <= margin:
        return None
    sure, power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(POWER)
    differing = np.count_nonzero(values) / len(values)

    def shown(rows: int) -> bool:
        worst = worst_unseen(values, differing=round(rows * differing))
        share = (mean - worst) / (rows + 1)  # what the unseen row subtracts from the mean, and its spread
        error = spread / math.sqrt(rows)
        return mean - share - margin >= sure * math.hypot(error, share) + power * error

    few, many = 0, math.ceil(math.log(1 - confidence) / math.log(0.5) - 1e-9)
    while not shown(many):
        few, many = many, 2 * many
        if many > MOST_NEEDED:
            return MOST_NEEDED
    while few and many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if shown(middle) else (middle, many)
    return many


def _outcome(means: Values, *, margin: float, confidence: float, tolerance: float) -> tuple[float, float]:
    """The lower bound and the p-value, from means that are equally likely to be below the truth."""
    worse = int((means <= margin + tolerance).sum())
    place = math.floor((1 - confidence) * (1 + len(means)) + 1e-9)
    low = float(np.partition(means, place - 1)[place - 1]) - tolerance if place else -math.inf
    return low, (1 + worse) / (1 + len(means))


def _of_subsets(values: Values, draw: np.random.Generator, samples: int) -> Values:
    """The means of all non-empty subsets, or of random subsets."""
    rows = len(values)
    if rows <= ALL_SUBSETS:
        chosen = (np.arange(1, 2**rows)[:, None] >> np.arange(rows)) & 1
        return _means(chosen, values)
    return np.concatenate(
        [_means(draw.integers(2, size=(count, rows), dtype=np.int8), values) for count in _batches(samples, rows)]
    )


def _means(chosen: NDArray[np.integer], values: Values) -> Values:
    """The mean of each subset, minus infinity for an empty one; `chosen` is 0 or 1, of shape (subsets, rows)."""
    counts = chosen.sum(axis=1, dtype=np.int64)
    means: Values = np.where(counts > 0, (chosen @ values) / np.maximum(counts, 1), -np.inf)
    return means


def _of_weights(values: Values, worst: float, draw: np.random.Generator, samples: int) -> Values:
    """Means of the rows and the unseen worst one, under weights drawn uniformly from those that sum to 1."""
    means = []
    for count in _batches(samples, len(values)):
        weights = draw.standard_exponential(size=(count, len(values) + 1))
        means.append((weights[:, 1:] @ values + weights[:, 0] * worst) / weights.sum(axis=1))
    return np.concatenate(means)


def _batches(samples: int, rows: int) -> Iterator[int]:
    """How many samples at a time, so that they fit into memory."""
    most = max(1, AT_ONCE // rows)
    for start in range(0, samples, most):
        yield min(most, samples - start)
