"""Benchmarks of EleutherAI's lm-evaluation-harness, for the base and the tuned model, in the run that trains.

mlflow-ft train lora --model MODEL --data rows.jsonl --plugins.lm-eval.tasks arc_easy,my_task.yaml
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft import Evaluator, Options, hookimpl
from mlflow_ft_lm_eval.options import LmEvalOptions

if TYPE_CHECKING:
    from mlflow_ft import Config, Score, Subject

NAME = "lm-eval"
INSTALL = "pip install 'mlflow-ft[lm-eval]'"


def evaluate(subject: Subject) -> Sequence[Score]:
    """The scores of every task; none where no task is set."""
    options = subject.config.options(LmEvalOptions)
    if not options.tasks:
        return ()
    from mlflow_ft_lm_eval.engine import harness

    return harness.evaluate(subject, options)


def refuses(config: Config) -> str | None:
    """Why the tasks cannot be run: the harness is not installed, a name is unknown, data cannot be fetched."""
    options = config.options(LmEvalOptions)
    if not options.tasks:
        named = NAME in (config.evaluation.evaluators or ())
        return "no task is set; name some: --plugins.lm-eval.tasks arc_easy,my_task.yaml" if named else None
    if importlib.util.find_spec("lm_eval") is None:
        return f"the harness is not installed: {INSTALL}"
    from mlflow_ft_lm_eval.engine import tasks

    return tasks.wrong(options)


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name=NAME,
            summary="benchmarks of the lm-evaluation-harness, where `plugins.lm-eval.tasks` names some",
            evaluate=evaluate,
            scores=("lm_eval/*",),
            own_rows=True,
            refuses=refuses,
        )
    ]


@hookimpl
def register_options() -> list[Options]:
    return [Options(name=NAME, summary="which benchmarks are run, and how", fields=LmEvalOptions)]
