from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import Example
from mlflow_ft.config.methods import RolloutSection
from mlflow_ft.engine.rewards.reward_watch import PATIENCE, RewardWatch, equal
from mlflow_ft.progress import Progress
from mlflow_ft.testing import WORDS

ENDS, CUT = [False, True], [True, True]
SAME: list[list[float | None]] = [[0.0, 0.0], [1.0, 1.0]]
VARIED: list[list[float | None]] = [[0.0, 0.0], [1.0, 0.5]]


class Listed(Progress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def watched(batches: Sequence[tuple[Any, Any]]) -> tuple[list[str], tuple[str, ...]]:
    progress = Listed()
    watch = RewardWatch(RolloutSection(), progress)
    for groups, cut in batches:
        watch.see(groups, cut=cut)
    return progress.warnings, watch.findings()


def test_ten_batches_in_a_row_are_said_once_with_the_remedy_and_found_at_the_end() -> None:
    warnings, findings = watched([(SAME, ENDS)] * (PATIENCE + 5) + [(VARIED, ENDS)] * 5)
    assert len(warnings) == 1
    assert warnings[0].startswith("in 10 sampled batches in a row the compared answers had equal rewards")
    assert "rollout.temperature" in warnings[0]
    assert findings == (
        "in 15 of 20 sampled batches the compared answers had equal rewards: nothing was learned from them",
    )
    warnings, findings = watched([(VARIED, CUT)] * PATIENCE)
    assert "every answer was cut at rollout.max_completion_length (128 tokens)" in warnings[0]
    assert "Raise rollout.max_completion_length" in warnings[0]
    assert len(findings) == 1


@pytest.mark.parametrize("missing", [None, math.nan])
def test_answers_without_rewards_are_not_equal_rewards(missing: float | None) -> None:
    """ms-swift#8123: a reward function that returns nothing for every answer."""
    warnings, findings = watched([([[missing, missing]], ENDS)] * 3)
    assert findings == (
        "in 3 of 3 sampled batches no answer had a reward: the reward functions returned None or NaN for all of them",
    )
    assert len(warnings) == 1
    assert watched([([[missing, 1.0]], ENDS), (VARIED, ENDS)]) == ([], ())


def test_one_batch_that_differs_begins_the_count_anew() -> None:
    almost = [(SAME, CUT)] * (PATIENCE - 1)
    assert watched([*almost, (VARIED, ENDS), *almost]) == ([], ())


def test_both_are_said_and_a_short_training_that_was_so_throughout_too() -> None:
    warnings, findings = watched([(SAME, CUT)] * 3)
    assert len(warnings) == len(findings) == 2
    assert findings[0].startswith("in 3 of 3 sampled batches")
    assert watched([]) == ([], ())


@pytest.mark.parametrize(
    ("rewards", "same"),
    [
        ([0.0, 0.0], True),
        ([0.1 + 0.2, 0.3], True),
        ([1.0, 1.001], False),
        ([None, 1.0, float("nan"), 1.0], True),
        ([None, None], True),  # nothing to learn from either
        ([-1.0, 1.0], False),
        ([], True),
    ],
)
def test_equal_rewards(rewards: list[float | None], *, same: bool) -> None:
    assert equal(rewards) is same


REWARDS = '''
import itertools
count = itertools.count()

def none(completions, **_):
    return [0.0] * len(completions)

def counts(completions, **_):
    return [float(next(count)) for _ in completions]

def by_prompt(prompts, completions, **_):
    """Equal within each group, and not between them."""
    return [float(len(turns[-1]["content"])) for turns in prompts]
'''


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(("reward", "reported"), [("none", True), ("by_prompt", True), ("counts", False)])
def test_what_trl_trains_on_is_watched(
    bench: Callable[..., Any], tmp_path: Path, method: str, reward: str, *, reported: bool
) -> None:
    """RLOO takes its KL penalty off the rewards, and `by_prompt` differs between groups: neither is a reward apart."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [
        Example(messages=({"role": "user", "content": f"{first} {second}"},)) for first in WORDS for second in WORDS[:2]
    ]
    settings = {"max_completion_length": 3, "max_steps": 3, "reward_funcs": f"{tmp_path / 'rewards.py'}:{reward}"}
    trained = bench(method, rows=rows, **settings).train()
    assert any("equal rewards" in finding for finding in trained.findings) is reported
