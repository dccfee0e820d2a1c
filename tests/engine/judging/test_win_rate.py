"""The interval of a win rate: published values, coverage, and its extremes."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from mlflow_ft.engine.judging.win_rate import win_rate


def test_without_ties_it_is_wilsons_interval() -> None:
    z = NormalDist().inv_cdf(0.975)
    for wins, votes in ((0, 9), (3, 9), (50, 80), (9, 9)):
        share, spread = wins / votes, z * z / votes
        middle = (share + spread / 2) / (1 + spread)
        half = z / (1 + spread) * math.sqrt(share * (1 - share) / votes + spread / (4 * votes))
        found = win_rate(wins=wins, ties=0, losses=votes - wins)
        assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
        assert found.rate == pytest.approx(share)


def test_with_ties_it_is_tangos() -> None:
    """As Fagerland, Lydersen and Laake (2014) give it for the airway data of Bentur et al.: -0.517 to -0.026."""
    found = win_rate(wins=1, ties=13, losses=7)
    assert (2 * found.low - 1, 2 * found.high - 1) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_both_sides_are_treated_alike() -> None:
    one, other = win_rate(wins=5, ties=3, losses=2), win_rate(wins=2, ties=3, losses=5)
    assert (one.rate, one.low, one.high) == pytest.approx((1 - other.rate, 1 - other.high, 1 - other.low))
    assert one.rate == 0.65


def test_ties_alone_are_no_certainty() -> None:
    found = win_rate(wins=0, ties=10, losses=0)
    assert found.low < 0.4 < found.rate == 0.5 < 0.6 < found.high
    assert win_rate(wins=0, ties=400, losses=0).low > 0.49


def exactly(wins: float, ties: float, votes: int) -> float:
    """How often the interval covers the true rate, summed over every outcome."""
    covered, true = 0.0, wins + ties / 2
    for won in range(votes + 1):
        for tied in range(votes - won + 1):
            lost = votes - won - tied
            ways = math.comb(votes, won) * math.comb(votes - won, tied)
            chance = ways * wins**won * ties**tied * (1 - wins - ties) ** lost
            found = win_rate(wins=won, ties=tied, losses=lost)
            covered += chance * (found.low <= true <= found.high)
    return covered


@pytest.mark.parametrize(("wins", "ties"), [(0.5, 0.0), (0.4, 0.2), (0.2, 0.6), (0.6, 0.3), (0.05, 0.9)])
def test_it_covers_the_true_rate_as_often_as_it_says(wins: float, ties: float) -> None:
    assert 0.93 < exactly(wins, ties, 25) <= 1.0


def test_no_votes_have_no_rate() -> None:
    with pytest.raises(ValueError, match="no rate"):
        win_rate(wins=0, ties=0, losses=0)
