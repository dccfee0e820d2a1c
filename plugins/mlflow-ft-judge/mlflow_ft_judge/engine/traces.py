"""The first judged answers as traces of the run, with the marks on them, as MLflow's UI shows evaluations.

`mlflow.genai.evaluate` would show the same, but it makes the training run an evaluation run, and logs means in which
answers that could not be judged are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlflow
from mlflow.entities import Assessment, AssessmentSource, AssessmentSourceType, Expectation

from mlflow_ft import Answer
from mlflow_ft_judge.engine.asking import Asked
from mlflow_ft_judge.engine.comparing import Comparison
from mlflow_ft_judge.engine.marking import Marks
from mlflow_ft_judge.engine.scorers import feedback

IN_BACKGROUND = "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"
"""MLflow's variable: whether traces are written by a thread of their own."""

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
    with _written_at_once():
        traces = [_trace(name, answer) for answer in answers]
    for number, (trace, answer) in enumerate(zip(traces, answers, strict=True)):
        for assessment in _assessments(number, answer, judges, marks, comparison):
            mlflow.log_assessment(trace, assessment)


@contextmanager
def _written_at_once() -> Iterator[None]:
    """Write each trace when it ends, to the current store: the marks need the trace to be there.

    MLflow decides both at the first trace of a process, and keeps to it when MLFLOW_TRACKING_URI changes later.
    """
    before = os.environ.get(IN_BACKGROUND)
    os.environ[IN_BACKGROUND] = "false"
    mlflow.tracing.reset()
    try:
        yield
    finally:
        if before is None:
            del os.environ[IN_BACKGROUND]
        else:
            os.environ[IN_BACKGROUND] = before
        mlflow.tracing.reset()


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
