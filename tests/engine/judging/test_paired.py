"""The claims of the paired test, and how often it is wrong, on simulated differences of many distributions."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mlflow_ft.engine.judging import paired
from mlflow_ft.engine.judging.paired import Paired, paired_test, row_differences

Shape = Callable[[np.random.Generator, int], np.ndarray]


def sample(count: int, mean: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, 1.0) for _ in range(count)]


def outcome(rows: list[float], *, margin: float = 0.0, confidence: float = 0.95, samples: int = 10_000) -> Paired:
    return paired_test(rows, margin=margin, confidence=confidence, samples=samples)


# --- exact numbers


@pytest.mark.parametrize("rows", range(1, 9))
def test_with_all_rows_better_nothing_is_surer_than_one_half_to_the_number_of_rows(rows: int) -> None:
    for values in ([1.0] * rows, [1.0 + 0.1 * number for number in range(rows)]):
        assert outcome(values).p_value >= 0.5**rows
    assert outcome([1.0] * rows).p_value == pytest.approx(0.5**rows, abs=0.01)


def test_four_rows_are_never_sure_and_five_alike_are() -> None:
    four, five = outcome([0.5] * 4), outcome([0.5] * 5)
    assert four.p_value >= 1 / 16
    assert four.low == -np.inf  # not one of 16 subsets is beyond 95 in 100
    assert 1 / 32 <= five.p_value <= 0.05
    assert 0 < five.low < 0.5


@pytest.mark.parametrize(("better", "worse", "same"), [(5, 0, 20), (9, 2, 3), (12, 4, 0), (3, 3, 30)])
def test_for_right_and_wrong_answers_it_is_mcnemars_exact_test(better: int, worse: int, same: int) -> None:
    paired = outcome([1.0] * better + [-1.0] * worse + [0.0] * same, samples=40_000)
    exact = stats.binomtest(better, better + worse, alternative="greater").pvalue
    assert paired.p_value == pytest.approx(exact, abs=0.01)
    assert paired.differing == better + worse


def test_up_to_16_rows_every_subset_is_looked_at() -> None:
    values = np.array(sample(10, 0.4))
    means = paired._of_subsets(values, np.random.default_rng(0), 1000)
    signs = 1 - 2 * ((np.arange(2**10)[:, None] >> np.arange(10)) & 1)
    flipped = (signs @ values >= values.sum() - 1e-12).mean()  # the sign-flip test as it is usually written
    assert (1 + (means <= 0).sum()) / (1 + len(means)) == pytest.approx(flipped)


def test_it_is_near_the_paired_t_test_where_that_is_right_and_never_more_certain() -> None:
    """Many rows of a normal difference: the t-test knows the interval."""
    rows = sample(2000, 0.1)
    paired = outcome(rows)
    t_test = stats.ttest_1samp(rows, 0.0, alternative="greater")
    assert paired.difference == pytest.approx(np.mean(rows))
    assert t_test.confidence_interval(0.95).low - 0.01 < paired.low <= t_test.confidence_interval(0.95).low + 0.001


def test_the_bound_is_above_the_margin_exactly_where_the_p_value_says_so() -> None:
    for seed in range(20):
        rows = sample(40, 0.4, seed)
        low = outcome(rows).low
        for margin in (low - 1e-6, low + 1e-6, 0.0, 0.3):
            paired = outcome(rows, margin=margin)
            assert (paired.low, paired.difference) == (low, outcome(rows).difference)
            assert (paired.low > margin) == (paired.p_value <= 0.05)


def test_equal_rows_are_no_improvement() -> None:
    paired = outcome([0.0] * 40)
    assert (paired.difference, paired.differing, paired.p_value, paired.needed) == (0.0, 0, 1.0, None)
    assert not paired.low > 0


def test_the_same_rows_give_the_same_numbers_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(30, 0.2)
    whole = outcome(rows)
    monkeypatch.setattr(paired, "AT_ONCE", 3000)
    assert outcome(rows).p_value == pytest.approx(whole.p_value, abs=0.02)
    assert outcome(rows) == outcome(rows)


@pytest.mark.parametrize("rows", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_cannot_be_tested(rows: list[float]) -> None:
    with pytest.raises(ValueError, match="needs at least one row"):
        outcome(rows)


def test_a_difference_by_rounding_is_none() -> None:
    ours, theirs = [1.0, 2.0, None, 3.0, 0.1], [1.0 + 3e-6, 2.5, 1.0, None, 0.1 - 9e-6]
    assert row_differences(ours, theirs, lower_is_better=True) == [0.0, 0.5, 0.0]
    assert row_differences(ours, theirs, lower_is_better=False) == [0.0, -0.5, 0.0]
    assert row_differences([], [], lower_is_better=True) == []


# --- how often it is wrong


def binary(better: float, worse: float) -> Shape:
    def draw(generator: np.random.Generator, rows: int) -> np.ndarray:
        uniform = generator.random(rows)
        return (uniform < better).astype(float) - (uniform > 1 - worse)

    return draw


def tied(share: float, other: Shape) -> Shape:
    return lambda generator, rows: np.where(generator.random(rows) < share, 0.0, other(generator, rows))


def rare_loss(share: float) -> Shape:
    """Most rows gain a little, some lose much."""
    return lambda generator, rows: (
        np.where(generator.random(rows) < share, -(1 - share) / share, 1.0) + 0.1 * generator.standard_normal(rows)
    )


def skewed(generator: np.random.Generator, rows: int) -> np.ndarray:
    """The worst kind: rare rows lose very much."""
    return np.exp(0.5) - generator.lognormal(size=rows)


def exponential(generator: np.random.Generator, rows: int) -> np.ndarray:
    return 1 - generator.exponential(size=rows)


EQUAL: dict[str, Shape] = {
    "normal": lambda generator, rows: generator.standard_normal(rows),
    "heavy tails": lambda generator, rows: generator.standard_t(2, rows),
    "binary": binary(0.3, 0.3),
    "binary, mostly tied": binary(0.04, 0.04),
    "skewed to the bad": skewed,
    "skewed to the good": lambda generator, rows: -skewed(generator, rows),
    "exponential": exponential,
    "chi-squared": lambda generator, rows: 1 - generator.chisquare(1, rows),
    "skewed, half tied": tied(0.5, skewed),
    "skewed, mostly tied": tied(0.8, skewed),
    "a fifth loses much": rare_loss(0.2),
}
"""Differences of two models of which neither is better."""
RUNS = 400
MOST = 0.05 + 2.33 * (0.05 * 0.95 / RUNS) ** 0.5
"""Of false alarms in so many runs, where 5 % are right, with 99 %."""


def alarms(shape: Shape, rows: int, *, margin: float = 0.0, shift: float = 0.0) -> float:
    generator = np.random.default_rng(rows + 1)
    outcomes = [outcome(shape(generator, rows) + shift, margin=margin, samples=499) for _ in range(RUNS)]
    return sum(paired.low > margin for paired in outcomes) / RUNS


UNSEEN = ("a fifth loses much", 5)
"""0.8 ** 5: in a third of the samples no row shows the loss, and no test can see it; that is why min_rows exists."""
SIZES = [(name, rows) for name in EQUAL for rows in (5, 20, 50, 200) if (name, rows) != UNSEEN]


@pytest.mark.parametrize(("name", "rows"), SIZES)
def test_of_equal_models_at_most_one_in_twenty_is_found_better(name: str, rows: int) -> None:
    assert alarms(EQUAL[name], rows) <= MOST


@pytest.mark.parametrize("rows", [5, 20, 50, 200])
@pytest.mark.parametrize("name", ["normal", "skewed to the bad", "exponential", "heavy tails"])
def test_nor_by_a_margin(name: str, rows: int) -> None:
    assert alarms(EQUAL[name], rows, margin=0.5, shift=0.5) <= MOST


@pytest.mark.parametrize("rows", [5, 20, 50, 200])
@pytest.mark.parametrize(("better", "worse"), [(0.3, 0.2), (0.5, 0.1), (0.9, 0.0), (0.1, 0.0)])
def test_nor_of_right_and_wrong_answers_by_a_margin(better: float, worse: float, rows: int) -> None:
    assert alarms(binary(better, worse), rows, margin=better - worse) <= MOST


def test_the_sign_flip_alone_would_not_hold() -> None:
    """Why there are two tests: with rare losses it finds three times as many as it should."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(RUNS):
        means = paired._of_subsets(skewed(generator, 20), generator, 499)
        wrong += (1 + (means <= 0).sum()) / 500 <= 0.05
    assert wrong / RUNS > 0.12


def test_thirty_rows_show_a_loss_in_one_row_of_ten() -> None:
    """What min_rows is by default: fewer rows miss it too often, whatever the test."""
    assert alarms(rare_loss(0.1), 30) <= MOST < alarms(rare_loss(0.1), 20)


# --- how many rows it takes


@pytest.mark.parametrize(
    "shape",
    [
        lambda generator, rows: generator.normal(0.5, 1, rows),
        lambda generator, rows: generator.normal(0.25, 1, rows),
        binary(0.3, 0.1),
        lambda generator, rows: generator.exponential(size=rows) - 0.6,
    ],
)
def test_the_number_of_rows_that_is_named_would_show_the_difference(shape: Shape) -> None:
    generator = np.random.default_rng(1)
    named = outcome(shape(generator, 20_000), samples=1000).needed
    assert named
    shown = [outcome(shape(generator, named), samples=499).low > 0 for _ in range(200)]
    assert 0.65 < sum(shown) / len(shown) < 0.97


def test_no_number_of_rows_shows_what_is_not_there() -> None:
    assert outcome([-0.1] * 8).needed is None
    assert outcome([0.1] * 8, margin=0.2).needed is None
    assert outcome([0.5] * 4).needed == 5
    assert outcome(sample(50, 0.0005, 3) + [-value for value in sample(50, 0.0, 3)]).needed == paired.MOST_NEEDED
