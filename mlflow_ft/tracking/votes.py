"""Votes of people as MLflow keeps them: a trace for each pair of answers, and a human assessment for each vote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Assessment, AssessmentSource, AssessmentSourceType, Feedback

from mlflow_ft.tracking.environ import overriding
from mlflow_ft.tracking.server import every, told

NAME = "preference"
"""Of the assessments."""
AT_ONCE = {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
"""Not later, by a thread: a vote needs its trace."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A vote on a pair."""

    value: str
    """`first`, `second`, `equal` or `skipped`."""
    by: str
    at_ms: int
    human: bool = True


@dataclass(frozen=True, kw_only=True)
class PairTrace:
    """What a trace shows of a pair."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, str]
    tags: Mapping[str, str]


class VoteStore:
    """The traces of one run. Every method raises TrackingError if the server does not take or give them."""

    def __init__(self, client: MlflowClient, *, run_id: str, experiment_id: str) -> None:
        self._client, self._run_id, self._experiment_id = client, run_id, experiment_id

    def add_pairs(self, pairs: Iterable[PairTrace]) -> Iterator[str]:
        """Log each pair as a trace of the run, one by one, and give its id."""
        with told("log a pair of answers as a trace"), _written_at_once():
            for pair in pairs:
                span = self._client.start_trace(
                    "pair of answers",
                    inputs=dict(pair.inputs),
                    tags=dict(pair.tags),
                    run_id=self._run_id,
                    experiment_id=self._experiment_id,
                )
                self._client.end_trace(span.trace_id, outputs=dict(pair.outputs))
                yield str(span.trace_id)

    def votes(self) -> dict[str, Vote]:
        """The vote on each trace that has one; of several, left by a lost answer of the server, the latest."""
        with told(f"read the votes of run {self._run_id}"):
            traces = every(
                lambda token: self._client.search_traces(
                    locations=[self._experiment_id], run_id=self._run_id, include_spans=False, page_token=token
                )
            )
            return {
                str(trace.info.trace_id): _vote(given[-1])
                for trace in traces
                if (given := _given(trace.info.assessments))
            }

    def cast(self, trace_id: str, vote: Vote) -> None:
        """Set the vote on a trace; it has one at most."""
        kind = AssessmentSourceType.HUMAN if vote.human else AssessmentSourceType.CODE
        self.withdraw(trace_id)
        with told("write a vote"):
            feedback = Feedback(
                name=NAME,
                value=vote.value,
                source=AssessmentSource(source_type=kind, source_id=vote.by),
                create_time_ms=vote.at_ms,
                last_update_time_ms=vote.at_ms,
            )
            mlflow.log_assessment(trace_id, feedback)

    def withdraw(self, trace_id: str) -> None:
        """Remove the vote from a trace, if it has one."""
        with told("withdraw a vote"):
            for assessment in _given(self._client.get_trace(trace_id, display=False).info.assessments):
                mlflow.delete_assessment(trace_id=trace_id, assessment_id=str(assessment.assessment_id))


@contextmanager
def _written_at_once() -> Iterator[None]:
    """Write each trace when it ends, to the current store: MLflow decides both at the first trace of a process."""
    with overriding(os.environ, AT_ONCE):
        mlflow.tracing.reset()
        yield
    mlflow.tracing.reset()


def _given(assessments: Sequence[Assessment] | None) -> list[Assessment]:
    """The votes among the assessments of a trace, oldest first."""
    votes = [each for each in assessments or () if each.name == NAME and each.valid is not False]
    return sorted(votes, key=lambda vote: vote.create_time_ms or 0)


def _vote(assessment: Assessment) -> Vote:
    assert isinstance(assessment, Feedback)
    return Vote(
        value=str(assessment.value),
        by=str(assessment.source.source_id),
        at_ms=int(assessment.create_time_ms or 0),
        human=assessment.source.source_type == AssessmentSourceType.HUMAN,
    )
