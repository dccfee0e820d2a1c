"""Curves and scores of two runs: what counts as the same, and what is reported first."""

from __future__ import annotations

import math

import pytest

from mlflow_ft.config.schema import Config
from mlflow_ft.operations.reproducing import comparison
from mlflow_ft.operations.reproducing.comparison import Compared, Rule
from mlflow_ft.tracking.curves import Curves

BITS, NEAR = Rule(exact=True, tolerance=0), Rule(exact=False, tolerance=1e-3)
THEN: Curves = {
    "train/loss": {1: 3.0, 2: 2.0, 3: 1.0},
    "train/grad_norm": {1: 1.0, 2: 1.0, 3: 1.0},
    "train/tokens_per_second": {1: 100.0},
    "train/mean_loss": {0: 2.0},
    "eval/loss": {0: 3.0, 2: 2.0},
    "eval/tuned/loss": {0: 2.0},
    "eval/tuned/exact_match": {0: 0.5},
}


def compared(now: Curves, rule: Rule) -> dict[str, Compared]:
    return {metric.name: metric for metric in comparison.compare(THEN, {**THEN, **now}, rule)}


def first(now: Curves, rule: Rule = BITS) -> tuple[str, int | None] | None:
    metric = comparison.first(list(compared(now, rule).values()))
    return (metric.name, metric.step) if metric else None


def test_the_same_numbers_are_identical_and_times_are_not_compared() -> None:
    metrics = compared({"train/tokens_per_second": {1: 200.0}}, BITS)
    assert "train/tokens_per_second" not in metrics
    assert all(metric.identical and metric.same and metric.step is None for metric in metrics.values())


def test_one_bit_is_a_difference_and_its_first_step_is_reported() -> None:
    bit = math.nextafter(2.0, 3.0)
    metric = compared({"train/loss": {1: 3.0, 2: bit, 3: 1.5}}, BITS)["train/loss"]
    assert (metric.step, metric.then, metric.now, metric.largest) == (2, 2.0, bit, 0.5)
    assert (metric.identical, metric.same, metric.grown) == (False, False, True)


def test_the_earliest_step_of_a_curve_comes_before_numbers_of_the_end() -> None:
    """Scores and the mean loss are logged at step 0, but measured at the end."""
    late = {"train/loss": {1: 3.0, 2: 2.0, 3: 1.1}}
    scores = {"train/mean_loss": {0: 2.1}, "eval/tuned/loss": {0: 2.1}}
    assert first(late | scores) == ("train/loss", 3)
    assert first(late | scores | {"train/grad_norm": {1: 1.0, 2: 1.1, 3: 1.0}}) == ("train/grad_norm", 2)
    assert first(late | scores | {"eval/loss": {0: 3.1, 2: 2.0}}) == ("eval/loss", 0)
    both = {"train/loss": {1: 3.1, 2: 2.0, 3: 1.0}, "train/grad_norm": {1: 1.1, 2: 1.0, 3: 1.0}}
    assert first(both) == ("train/loss", 1)
    assert first({"eval/tuned/exact_match": {0: 0.25}}) == ("eval/tuned/exact_match", 0)


def test_within_a_tolerance_losses_decide() -> None:
    near = {"train/loss": {1: 3.002, 2: 2.0, 3: 1.0}, "train/grad_norm": {1: 2.0, 2: 1.0, 3: 1.0}}
    metrics = compared(near, NEAR)
    assert (metrics["train/loss"].same, metrics["train/loss"].identical) == (True, False)
    assert (metrics["train/grad_norm"].same, metrics["train/grad_norm"].decides) == (False, False)
    assert first(near, NEAR) is None
    assert first({"train/loss": {1: 3.004, 2: 2.0, 3: 1.0}}, NEAR) == ("train/loss", 1)
    assert first({"eval/tuned/exact_match": {0: 0.25}}, NEAR) is None


@pytest.mark.parametrize("rule", [BITS, NEAR])
def test_a_missing_point_and_nan_are_differences(rule: Rule) -> None:
    cut = compared({"train/loss": {1: 3.0, 2: 2.0}}, rule)["train/loss"]
    assert (cut.step, cut.then, cut.now, cut.largest) == (3, 1.0, None, math.inf)
    broken = compared({"train/loss": {1: 3.0, 2: math.nan, 3: 1.0}}, rule)["train/loss"]
    assert (broken.step, broken.largest, broken.grown) == (2, math.inf, False)
    (alike,) = comparison.compare({"train/loss": {1: math.nan}}, {"train/loss": {1: math.nan}}, rule)
    assert alike.identical
    assert alike.same


def test_a_tolerance_is_relative_and_absolute_below_one() -> None:
    assert NEAR.same(2000.0, 2001.0)
    assert not NEAR.same(2000.0, 2003.0)
    assert NEAR.same(0.01, 0.0109)
    assert not NEAR.same(0.01, 0.0111)


def test_16_bits_have_a_wider_tolerance() -> None:
    plain = Config.model_validate({"method": "lora"})
    quantised = Config.model_validate({"method": "qlora", "model": {"quantize": "nf4"}})
    assert comparison.default_tolerance(plain, lower=False) == 1e-3
    assert comparison.default_tolerance(plain, lower=True) == 1e-2
    assert comparison.default_tolerance(quantised, lower=False) == 1e-2
