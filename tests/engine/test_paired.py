from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from mlflow_ft.engine import paired
from mlflow_ft.engine.paired import paired_bootstrap


def sample(count: int, mean: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, 1.0) for _ in range(count)]


def test_it_agrees_with_the_paired_t_test_where_that_is_right() -> None:
    """Many rows of a normal difference: both know the interval."""
    rows = sample(400, 0.1)
    found = paired_bootstrap(rows, margin=0.0, confidence=0.95, samples=20_000)
    t_test = stats.ttest_1samp(rows, 0.0, alternative="greater")
    assert found.difference == pytest.approx(np.mean(rows))
    assert found.p_value == pytest.approx(t_test.pvalue, abs=0.01)
    assert found.low == pytest.approx(t_test.confidence_interval(0.95).low, abs=0.01)


def test_of_two_equal_models_one_in_twenty_is_found_better() -> None:
    found = [paired_bootstrap(sample(100, 0.0, seed), margin=0.0, confidence=0.95, samples=1000) for seed in range(400)]
    assert 0.02 < sum(one.low > 0 for one in found) / len(found) < 0.09


def test_the_margin_moves_the_p_value_and_not_the_interval() -> None:
    rows = sample(50, 1.0)
    none, some = (paired_bootstrap(rows, margin=margin, confidence=0.9) for margin in (0.0, 0.9))
    assert (none.low, none.difference, none.rows) == (some.low, some.difference, 50)
    assert none.p_value < 0.001 < 0.1 < some.p_value


def test_equal_rows_are_no_improvement() -> None:
    found = paired_bootstrap([0.0] * 20, margin=0.0, confidence=0.95)
    assert (found.difference, found.low, found.p_value) == (0.0, 0.0, 1.0)


def test_the_same_rows_give_the_same_numbers_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(30, 0.2)
    whole = paired_bootstrap(rows, margin=0.0, confidence=0.95)
    monkeypatch.setattr(paired, "AT_ONCE", 3000)
    assert paired_bootstrap(rows, margin=0.0, confidence=0.95) == whole


@pytest.mark.parametrize("rows", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_cannot_be_tested(rows: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        paired_bootstrap(rows, margin=0.0, confidence=0.95)
