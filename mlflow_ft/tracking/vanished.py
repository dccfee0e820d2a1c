"""Our runs and whether a process is working on them: a run whose process vanished is found by its heartbeat."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft.errors import MEMORY_REMEDIES, TrackingError
from mlflow_ft.tracking import heartbeat, notes
from mlflow_ft.tracking.environ import SILENT, overriding
from mlflow_ft.tracking.heartbeat import AWAY_SECONDS, Beat
from mlflow_ft.tracking.server import connect, every, told

SILENT_SECONDS = 100.0
"""Three heartbeats and some: so long a run with the same settings is waited for."""
LOOK_SECONDS = 5.0
OURS = "tags.`mlflow_ft.plugins` LIKE '%'"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One of our runs and its last heartbeat."""

    run_id: str
    name: str
    method: str
    status: str
    stage: str
    step: int | None
    heartbeat_age: float | None
    """Seconds; None if the run has no heartbeat, because it ended or was started by an earlier version."""
    vanished: bool
    """RUNNING, and its process is gone."""
    started_ms: int


def states(*, most: int = 50, now: float | None = None, away: float = AWAY_SECONDS) -> list[RunState]:
    """The latest runs of all experiments, the latest first.

    Raises:
        TrackingError: the server does not answer.
    """
    client, now = connect(), time.time() if now is None else now
    with told("list the runs"):
        return [_state(run, now, away) for run in _search(client, OURS, most=most)]


def reap(*, now: float | None = None, away: float = AWAY_SECONDS) -> list[RunState]:
    """Mark the runs whose process is gone KILLED, as of their last heartbeat, with the reason as their error.

    Raises:
        TrackingError: the server does not answer.
    """
    client, now = connect(), time.time() if now is None else now
    reaped = []
    with told("mark the runs whose process is gone"):
        for run in _search(client, f"attributes.status = 'RUNNING' AND tags.`{heartbeat.TAG}` LIKE '%'", most=1000):
            beat = Beat.of_tag(run.data.tags.get(heartbeat.TAG))
            if beat is not None and beat.gone(now, away=away):
                _end(client, run, beat)
                reaped.append(_state(run, now, away))
    return reaped


def reap_quietly() -> None:
    """`reap` before another run starts; errors are left to the next command."""
    try:
        for state in reap():
            log.warning("the process of run %s (%s) is gone: the run is marked KILLED", state.run_id, state.name)
    except Exception as error:  # the run about to start checks the server itself
        log.debug("looking for runs whose process is gone: %s", error)


def reap_of(tag: str, value: str) -> None:
    """Mark the runs with a tag KILLED whose process is gone, on another machine too, without the usual long wait.

    A process elsewhere that writes its heartbeat every 30 seconds is waited for: if none comes, it is gone.

    Raises:
        TrackingError: a process is working on such a run, or the server does not answer.
    """
    client, began = connect(), time.time()
    while working := _working(client, tag, value):
        for run, beat in working:
            if beat.here or beat.at > began:
                raise TrackingError(
                    f"run {run.info.run_id} has the same settings, and a process is working on it: {beat.pid} on "
                    f"{beat.host}",
                    hint="wait for it, or start a separate run with --run.resume never",
                )
        log.warning("waiting for a sign of life of run %s", working[0][0].info.run_id)
        time.sleep(LOOK_SECONDS)
    reap(away=SILENT_SECONDS)


def _working(client: MlflowClient, tag: str, value: str) -> list[tuple[Run, Beat]]:
    """The runs with a tag whose process may be alive, and their last heartbeats."""
    with told("look for runs with the same settings"):
        runs = _search(client, f"attributes.status = 'RUNNING' AND tags.`{tag}` = '{value}'", most=100)
    beats = [(run, Beat.of_tag(run.data.tags.get(heartbeat.TAG))) for run in runs]
    now = time.time()
    return [(run, beat) for run, beat in beats if beat is not None and not beat.gone(now, away=SILENT_SECONDS)]


def _end(client: MlflowClient, run: Run, beat: Beat) -> None:
    message = f"process {beat.pid} on {beat.host} is gone: it was killed, or its machine was lost"
    if beat.here and heartbeat.oom_kills() > beat.oom_kills:
        message += f". The kernel killed a process for lack of memory meanwhile; if it was this one, {MEMORY_REMEDIES}"
    command = "compare --resume" if run.data.tags.get("mlflow_ft.method") == "compare" else "resume"
    hint = f"to continue: mlflow-ft {command} {run.info.run_id}"
    note = run.data.tags.get(notes.NOTE, "")
    for key, value in notes.error_tags(note, "KILLED", stage=beat.stage, error=message, hint=hint).items():
        client.set_tag(run.info.run_id, key, value)
    with overriding(os.environ, SILENT):
        client.set_terminated(run.info.run_id, "KILLED", end_time=int(beat.at * 1000))


def _state(run: Run, now: float, away: float) -> RunState:
    beat = Beat.of_tag(run.data.tags.get(heartbeat.TAG))
    running = run.info.status == "RUNNING"
    return RunState(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        method=run.data.params.get("cfg.method", run.data.tags.get("mlflow_ft.method", "")),
        status=run.info.status,
        stage=beat.stage if beat and running else run.data.tags.get("mlflow_ft.stage", ""),
        step=beat.step if beat else None,
        heartbeat_age=max(0.0, now - beat.at) if beat else None,
        vanished=bool(beat and running and beat.gone(now, away=away)),
        started_ms=run.info.start_time,
    )


def _search(client: MlflowClient, condition: str, *, most: int) -> Sequence[Run]:
    experiments = every(lambda token: client.search_experiments(page_token=token))
    ids = [experiment.experiment_id for experiment in experiments]
    return client.search_runs(ids, condition, max_results=most, order_by=["attributes.start_time DESC"])
