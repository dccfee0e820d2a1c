"""How good the policy's greedy answers to held-out prompts are, by the rewards it learns from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlflow_ft.engine import judge as judging
from mlflow_ft.engine import rewards
from mlflow_ft.engine.rewards import LoadedReward
from mlflow_ft.job import Data, Job
from mlflow_ft.records import Score

SHOWN = 20
"""Rows of the table of answers."""


def judge(
    job: Job, data: Data, model: Any, judges: Sequence[LoadedReward]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics that begin with `eval_`, and a table of answers with what each judge says of them."""
    settings = job.config.evaluation
    examples = list(itertools.islice(filter(judging.answerable, data.eval.examples), settings.max_rows))
    if not examples:
        return {}, []
    found = judging.answers(
        model,
        data,
        examples,
        max_new_tokens=job.config.rollout.max_completion_length,
        batch_size=settings.per_device_eval_batch_size,
    )
    told = [replace(one, columns=rewards.columns(row)) for one, row in zip(found, examples, strict=True)]
    values = rewards.of_answers(judges, told)
    sums = rewards.weighted(judges, values)
    metrics = {"eval_reward": Score.mean("reward", sums).value}
    metrics |= {f"eval_rewards/{name}": Score.mean(name, rows).value for name, rows in values.items()}
    metrics["eval_finished"] = sum(one.finished for one in told) / len(told)
    table = [
        {
            "prompt": "\n\n".join(str(turn.get("content")) for turn in one.prompt if turn["role"] != "system"),
            "answer": one.text,
            "finished": one.finished,
            "reward": sums[row],
            **{f"rewards/{name}": found_values[row] for name, found_values in values.items()},
        }
        for row, one in enumerate(told[:SHOWN])
    ]
    return metrics, table
