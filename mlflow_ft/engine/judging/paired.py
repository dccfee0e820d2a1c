"""A paired test: is one model better than another on the same rows, by more than a margin?

No test knows what no row has shown: where a loss is rare and large enough, every test of a mean can be misled (Bahadur
and Savage 1956). So two tests must agree, each exact under an assumption of its own:

- the sign-flip test (Fisher 1935) in Hartigan's form (1969): for differences that scatter symmetrically, exact for any
  number of rows. The means of all subsets of the rows are its distribution; with 4 rows there are 16 subsets, and
  nothing is surer than 15 in 16.
- Gaffke's bound on a mean (2005; Learned-Miller and Thomas 2019, arXiv 1905.06208): for differences of any shape, as
  long as no row is worse than an unseen worst one, for which see `worst_unseen`.

For right or wrong answers both are McNemar's exact test. Beyond that each alone finds equal models different too often
(the sign flip up to 18 % in place of 5 % where a few rows lose much); both together do not.
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
"""Numbers that are drawn at a time."""
ALL_SUBSETS = 16
"""Up to so many rows every subset is looked at; beyond, random ones."""
MANY = 5000
"""Rows from which on fewer samples say as much."""
ENOUGH = 2000
FEW = 30
"""Rows that differ. With fewer, the rows that were seen say little about the worst that was not: a fault in one row of
ten stays unseen in 29 rows with a chance of 4.7 %."""
WORSE_BY = 2.5
"""How many times as bad as the largest difference seen a row may be, where few rows differ."""
POWER = 0.8
SAME = 1e-5
"""Share of the scores' mean size below which a difference is rounding: float32, in batches of another shape."""
MOST_NEEDED = 1_000_000
"""Beyond so many rows it is not worth saying how many."""
ROUNDING = 1e-9
"""Share of the largest difference below which two numbers are equal."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The outcome, in the unit of the score, turned so that a positive difference is an improvement."""

    rows: int
    differing: int
    """Rows on which the two models have different scores."""
    difference: float
    """Mean over the rows."""
    low: float
    """The difference is above it with the confidence that was asked for; minus infinity where the rows are too few to
    say anything with that confidence. It is above the margin exactly where `p_value` is at most 1 - confidence."""
    p_value: float
    """How often models that differ by the margin alone would show such a difference, at most."""
    needed: int | None
    """Rows that would show a difference of this size, four times of five; None where it is not above the margin."""


def row_differences(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, lower_is_better: bool
) -> list[float]:
    """Of every row that both have a score for, by how much ours is better; 0 where it differs by rounding alone."""
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
    rounding = SAME * sum(abs(one) + abs(other) for one, other in pairs) / max(1, 2 * len(pairs))
    found = [other - one if lower_is_better else one - other for one, other in pairs]
    return [one if abs(one) > rounding else 0.0 for one in found]


def paired_test(
    differences: Sequence[float], *, margin: float, confidence: float, samples: int = 10_000, seed: int = 0
) -> Paired:
    """Test whether the mean difference is above `margin`.

    Args:
        differences: Of every row by how much the one model is better than the other.
        margin: What the mean is tested to be above.
        confidence: Of the one-sided bound, 0.5 to 1.
        samples: Random subsets and weights, where there are too many to look at all; the same `seed` gives the same
            numbers, and p-values have the +1 of Phipson and Smyth (2010), so that none of them is too small.

    Raises:
        ValueError: no rows, or a difference that is NaN or infinite.
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
    """How bad a row may be that was not among those seen, where `differing` rows are seen to differ.

    Where all differences have one size, as with right and wrong answers, it has that size too. Else, with few rows, it
    is up to 2.5 times as bad as the largest difference in either direction; with more, twice as far below the mean as
    the worst row seen. In simulations (test_paired.py) this keeps false alarms below 5 % for differences
    as skewed as a lognormal's.
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

    By the normal approximation of both tests, and not less than what the sign flip needs where every row is better.
    """
    mean, spread = float(values.mean()), float(values.std(ddof=min(1, len(values) - 1)))
    if mean <= margin:
        return None
    sure, power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(POWER)
    differing = np.count_nonzero(values) / len(values)

    def shown(rows: int) -> bool:
        worst = worst_unseen(values, differing=round(rows * differing))
        share = (mean - worst) / (rows + 1)  # what the unseen row takes from the mean, and how that scatters
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
    """The lower bound and the p-value, from means of which each is as likely as another to be below the truth."""
    worse = int((means <= margin + tolerance).sum())
    place = math.floor((1 - confidence) * (1 + len(means)) + 1e-9)
    low = float(np.partition(means, place - 1)[place - 1]) - tolerance if place else -math.inf
    return low, (1 + worse) / (1 + len(means))


def _of_subsets(values: Values, draw: np.random.Generator, samples: int) -> Values:
    """The means of all subsets but the empty one, or of random ones."""
    rows = len(values)
    if rows <= ALL_SUBSETS:
        chosen = (np.arange(1, 2**rows)[:, None] >> np.arange(rows)) & 1
        return _means(chosen, values)
    return np.concatenate(
        [_means(draw.integers(2, size=(count, rows), dtype=np.int8), values) for count in _batches(samples, rows)]
    )


def _means(chosen: NDArray[np.integer], values: Values) -> Values:
    """The mean of each subset, minus infinity of an empty one; `chosen` is 0 or 1, (subsets, rows)."""
    counts = chosen.sum(axis=1, dtype=np.int64)
    found: Values = np.where(counts > 0, (chosen @ values) / np.maximum(counts, 1), -np.inf)
    return found


def _of_weights(values: Values, worst: float, draw: np.random.Generator, samples: int) -> Values:
    """Means of the rows and the unseen worst one under weights that are uniform over all that sum to 1."""
    found = []
    for count in _batches(samples, len(values)):
        weights = draw.standard_exponential(size=(count, len(values) + 1))
        found.append((weights[:, 1:] @ values + weights[:, 0] * worst) / weights.sum(axis=1))
    return np.concatenate(found)


def _batches(samples: int, rows: int) -> Iterator[int]:
    """How many samples at a time, so that they fit into memory."""
    most = max(1, AT_ONCE // rows)
    for start in range(0, samples, most):
        yield min(most, samples - start)
