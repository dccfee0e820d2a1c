"""The first judged answers as traces of the run, with the marks on them, as MLflow's UI shows evaluations.

`mlflow.genai.evaluate` would show the same, but it makes the training run an evaluation run, and logs means in which
answers that could not be judged are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import mlflow
from mlflow.entities import Assessment, AssessmentSource, AssessmentSourceType, Expectation

from mlflow_ft import Answer
from mlflow_ft_judge.engine.asking import Asked
from mlflow_ft_judge.engine.comparing import Comparison
from mlflow_ft_judge.engine.marking import Marks
from mlflow_ft_judge.engine.scorers import feedback

EXPECTED = "expected_response"
"""MLflow's name for what an answer should be."""


def show(
    name: str,
    answers: Sequence[Answer],
    judges: Sequence[Asked],
    *,
    marks: Sequence[Marks],
    comparison: Comparison | None,
) -> None:
    """Log a trace for each answer to the active run.

    Raises:
        MlflowException: the server does not answer, or takes no traces.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")  # the marks need the trace to be there
    traces = [_trace(name, answer) for answer in answers]
    mlflow.flush_trace_async_logging()
    for number, (trace, answer) in enumerate(zip(traces, answers, strict=True)):
        for assessment in _assessments(number, answer, judges, marks, comparison):
            mlflow.log_assessment(trace, assessment)


def _trace(name: str, answer: Answer) -> str:
    with mlflow.start_span(f"answer of {name}") as span:
        span.set_inputs({"messages": list(answer.prompt)})
        span.set_outputs(answer.text)
    return str(span.trace_id)


def _assessments(
    number: int, answer: Answer, judges: Sequence[Asked], marks: Sequence[Marks], comparison: Comparison | None
) -> Iterator[Assessment]:
    if answer.expected:
        source = AssessmentSource(source_type=AssessmentSourceType.HUMAN, source_id="held-out row")
        yield Expectation(name=EXPECTED, value=answer.expected, source=source)
    for rubric in marks:
        repeats = len(rubric.readings) // len(judges)
        for reading, judgements in enumerate(rubric.readings):
            yield feedback(rubric.rubric.name, judgements[number], judges[reading // repeats])
    for judge, pairs in zip(judges, comparison.by_judge if comparison else (), strict=False):
        yield feedback("winner_base_as_A", pairs[number].ours_second, judge)
        yield feedback("winner_tuned_as_A", pairs[number].ours_first, judge)
