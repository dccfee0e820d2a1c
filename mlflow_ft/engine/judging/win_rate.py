"""The rate at which one of two models is preferred, with ties as half, and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

STEPS = 100
"""Bisections of the interval from -1 to 1: the bounds are exact to the last bit."""


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """A win rate, from 0 to 1, and its interval."""

    rate: float
    low: float
    high: float


def win_rate(*, wins: int, ties: int, losses: int, confidence: float = 0.95) -> WinRate:
    """(wins + ties / 2) / votes, with a two-sided interval.

    A vote is on a pair of answers to one prompt, so the rate is (1 + d) / 2, where d is the difference of two paired
    proportions, wins / votes - losses / votes. Its interval is Tango's score interval (Statistics in Medicine 17,
    1998), in which a tie is a vote for neither. Without ties it is Wilson's interval (1927) of wins / votes; with them
    it is narrower: the more ties, the surer it is that the rate is near a half.

    Raises:
        ValueError: there are no votes, or a count is negative.
    """
    votes = wins + ties + losses
    if min(wins, ties, losses) < 0 or not votes:
        raise ValueError(f"{wins} wins, {ties} ties and {losses} losses have no rate")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    difference = (wins - losses) / votes

    def score(supposed: float) -> float:
        return _score(wins, losses, votes, supposed)

    low = -1.0 if losses == votes else _where(lambda supposed: score(supposed) > z, -1.0, difference)
    high = 1.0 if wins == votes else _where(lambda supposed: score(supposed) >= -z, difference, 1.0)
    return WinRate(rate=(1 + difference) / 2, low=(1 + low) / 2, high=(1 + high) / 2)


def _score(wins: int, losses: int, votes: int, supposed: float) -> float:
    """How many standard errors the observed difference is above a supposed one; it falls as that grows.

    The standard error is that under the supposed difference: `lost` is the likeliest share of losses then.
    """
    b = (2 * votes - wins + losses) * supposed - wins - losses
    c = -losses * supposed * (1 - supposed)
    lost = (math.sqrt(max(0.0, b * b - 8 * votes * c)) - b) / (4 * votes)
    variance = votes * (2 * lost + supposed * (1 - supposed))
    distance = wins - losses - votes * supposed
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _where(before: Callable[[float], bool], low: float, high: float) -> float:
    """The number between two at which `before`, true at first, becomes false."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if before(middle) else (low, middle)
    return (low + high) / 2
