"""How good the policy's greedy answers to held-out prompts are, by the rewards it learns from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.values import Data, Job, Score

EVALUATED = 32
"""Held-out prompts that are answered at every evaluation, at most; the last evaluation of a run takes more."""


def scores(job: Job, data: Data, model: Any, judges: Sequence[LoadedReward]) -> dict[str, float]:
    """`eval_reward`, the mean of the weighted sums, `eval_rewards/NAME` of each judge, and `eval_finished`.

    Without a held-out prompt it is empty.

    How often a run is evaluated changes nothing of what it learns.
    """
    settings = job.config.evaluation
    most = min(settings.max_rows, EVALUATED)
    examples = list(itertools.islice(filter(judge.answerable, data.eval.examples), most))
    if not examples:
        return {}
    with aside():
        answers = judge.answers(
            model,
            data,
            examples,
            max_new_tokens=job.config.rollout.max_completion_length,
            batch_size=settings.per_device_eval_batch_size,
        )
        values = reward_judges.of_answers(judges, answers)
    found = {"eval_reward": Score.mean("reward", reward_judges.weighted(judges, values)).value}
    found |= {f"eval_rewards/{name}": Score.mean(name, rows).value for name, rows in values.items()}
    return found | {"eval_finished": sum(one.finished for one in answers) / len(answers)}
