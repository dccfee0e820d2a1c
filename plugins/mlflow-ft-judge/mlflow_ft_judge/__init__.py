"""LLM-as-judge: answers marked by rubrics and compared with the base model's, by any OpenAI-compatible endpoint.

plugins: {judge: {endpoint: http://127.0.0.1:5001/v1, model: NAME@champion}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft import Evaluator, Gate, Options, hookimpl
from mlflow_ft_judge import gate
from mlflow_ft_judge.settings import JudgeOptions, from_environment, problem

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Score, Subject


def judge(subject: Subject) -> Sequence[Score]:
    """All scores `judge/...` of one model; none if no judge is named."""
    options = subject.config.options(JudgeOptions)
    if subject.run is None:  # a promotion: who promotes says where a key is sent, not the author of the run
        options = from_environment(options)
    if not options.asked:
        return []
    from mlflow_ft_judge.engine import evaluating

    return evaluating.evaluate(subject, options)


def has_prompts(data: Data) -> bool:
    """Whether some held-out row asks for an answer in text."""
    return data.kind == "prompt" or any(example.answer is not None for example in data.eval.examples)


def refuses(config: Config) -> str | None:
    """What is wrong with the judge's settings; nothing where nobody asks for a judge."""
    options = config.options(JudgeOptions)
    return problem(options) if options.asked or "judge" in (config.evaluation.evaluators or ()) else None


@hookimpl
def before_train(job: Job, data: Data, model: Model) -> None:
    """Refuse, before anything is spent, a judge that could not be asked afterwards."""
    names, options = job.config.evaluation.evaluators, job.config.options(JudgeOptions)
    if "judge" in names if names is not None else options.asked and has_prompts(data):
        from mlflow_ft_judge.engine import checking

        checking.check(options)


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="judge",
            summary="marks by rubrics, and the win rate against the base model, by an LLM (plugins.judge.endpoint)",
            evaluate=judge,
            scores=("judge/*",),
            applies=has_prompts,
            refuses=refuses,
        )
    ]


@hookimpl
def register_gates() -> list[Gate]:
    return [
        Gate(
            name="judge",
            summary="wins against the champion more often than not, by an LLM that sees both orders (options.judge)",
            judge=gate.judge,
            options=gate.OPTIONS,
        )
    ]


@hookimpl
def register_options() -> list[Options]:
    return [
        Options(name="judge", summary="who judges answers, by which rubrics, and what it may cost", fields=JudgeOptions)
    ]
