"""Scores on rows of their own: compared only where they are the same rows, in the direction that they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mlflow_ft.config.gates import Gates, read_gates
from mlflow_ft.operations.promoting import rescore
from mlflow_ft.tracking.contenders import contender, find_version
from tests.operations.promoting.test_promote import Shop, shop

__all__ = ["shop"]
COST = "bench/cost"


def version(shop: Shop, costs: Sequence[float], *, digest: str = "a", held_out: str = "d" * 32) -> int:
    """A version whose run kept a cost for each question of a benchmark."""
    rows: dict[str, Sequence[float | None]] = {"loss": [1.0] * 40, COST: costs}
    number = shop.version(rows=rows, base={COST: 9.0}, digest=held_out)
    run_id = shop.client.get_model_version("chat", str(number)).tags["mlflow_ft.run_id"]
    kept = {"digest": held_out, "scores": {"tuned": rows, "base": {"loss": [2.0] * 40, COST: [9.0] * len(costs)}}}
    more = {"aims": [], "base_model": "tiny", "digests": {COST: digest}, "lower_is_better": {COST: True}}
    shop.client.log_text(run_id, json.dumps(kept | more), "eval/rows.json")
    return number


def gates(**settings: Any) -> Gates:
    return Gates.model_validate({"beats_champion": {"metric": COST}, "max_regression": {COST: 0.5}} | settings)


def test_the_direction_is_the_evaluators(shop: Shop) -> None:
    shop.promote(version(shop, [5.0, 5.5] * 20))
    judged = shop.judged(version(shop, [4.0, 4.5] * 20), gates())
    assert judged[f"beats-champion {COST}"].passed
    assert judged[f"no-regression {COST}"].numbers["worse"] == pytest.approx(-1.0)
    judged = shop.judged(version(shop, [6.0, 6.5] * 20), gates())
    assert not judged[f"beats-champion {COST}"].passed
    assert judged[f"no-regression {COST}"].numbers["worse"] == pytest.approx(1.0)
    assert not judged[f"no-regression {COST}"].passed


def test_the_first_champion_is_compared_with_its_base_in_that_direction(shop: Shop) -> None:
    asked = read_gates(f"beats_base: {{metric: {COST}}}", place="gates.yaml")
    assert shop.judged(version(shop, [4.0, 4.5] * 20), asked)[f"beats-base {COST}"].passed
    assert not shop.judged(version(shop, [10.0, 10.5] * 20), asked)[f"beats-base {COST}"].passed


def test_other_rows_are_not_compared(shop: Shop) -> None:
    shop.promote(version(shop, [5.0] * 40))
    judged = shop.judged(version(shop, [1.0] * 40, digest="b"), gates())
    for gate in ("beats-champion", "no-regression"):
        verdict = judged[f"{gate} {COST}"]
        assert not verdict.passed
        assert verdict.found.startswith(f"{COST} of the champion is on other rows")


def test_on_other_held_out_rows_they_are_still_those_of_the_run(shop: Shop) -> None:
    """Only what depends on the held-out rows is measured again, which is not possible with these files."""
    shop.promote(version(shop, [5.0, 5.5] * 20))
    other = version(shop, [4.0, 4.5] * 20, held_out="e" * 32)
    assert shop.judged(other, gates())[f"beats-champion {COST}"].passed
    both = shop.judged(other, gates(beats_champion={"metric": [COST, "loss"]}))
    assert both[f"beats-champion {COST}"].passed
    assert "could not be scored on them" in both["beats-champion loss"].found


def test_scoring_again_is_needed_only_for_scores_on_held_out_rows(shop: Shop) -> None:
    old = contender(shop.client, find_version(shop.client, "chat", str(version(shop, [5.0] * 40))))
    new = replace(old, eval_digest="e" * 32)
    assert not rescore.needed(new, old, gates())
    assert rescore.needed(new, old, gates(max_regression={"loss": 0.0}))
    assert rescore.needed(new, old, gates(beats_champion={"metric": "auto"}))
