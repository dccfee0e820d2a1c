"""The rewards of the policy's greedy answers to held-out prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mlflow_ft import Data, Job, Score
from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward

EVALUATED = 32
"""Maximum number of held-out prompts answered at each evaluation; the last evaluation of a run uses more."""


def scores(job: Job, data: Data, model: Any, judges: Sequence[LoadedReward]) -> dict[str, float]:
    """`eval_reward` (mean of the weighted sums), `eval_rewards/NAME` of each reward function, and `eval_finished`.

    Empty without held-out prompts. How often a run is evaluated does not affect what it learns.
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
    means = {"eval_reward": Score.mean("reward", reward_judges.weighted(judges, values)).value}
    means |= {f"eval_rewards/{name}": Score.mean(name, rows).value for name, rows in values.items()}
    return means | {"eval_finished": sum(answer.finished for answer in answers) / len(answers)}
