"""The nested runs of a sweep: which trial each of them is, how it ended, and what of it is removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ft.errors import TrackingError
from mlflow_ft.tracking import heartbeat
from mlflow_ft.tracking.checkpoints import PLACE
from mlflow_ft.tracking.metrics import clean_key
from mlflow_ft.tracking.notes import ERROR
from mlflow_ft.tracking.server import connect, every, told
from mlflow_ft.tracking.vanished import SILENT_SECONDS

SWEEP, TRIAL = "mlflow_ft.sweep", "mlflow_ft.trial"
"""Tags of a trial's run: the parent run, and the trial's number."""
PRUNED = "mlflow_ft.pruned"
"""Tag of a pruned trial, with the reason."""
TUNED = "eval/tuned/"
PATIENCE_SECONDS = 120.0
"""How long to wait for a trial that still finishes its step, because its sweep was killed."""
log = logging.getLogger(__name__)


def tags_of(sweep: str, number: int) -> dict[str, str]:
    """The tags of a new trial's run."""
    return {SWEEP: sweep, TRIAL: str(number)}


def of_sweep(sweep: str) -> dict[int, Run]:
    """The runs of a sweep by the number of their trial.

    Raises:
        TrackingError: the server does not answer.
    """
    client = connect()
    with told(f"read the trials of {sweep}"):
        experiment = client.get_run(sweep).info.experiment_id
        runs = list(
            every(lambda token: client.search_runs([experiment], f"tags.`{SWEEP}` = '{sweep}'", page_token=token))
        )
    return {int(run.data.tags[TRIAL]): run for run in reversed(runs)}


def settled(run: Run) -> Run:
    """The run when no process works on it any more: a trial whose sweep was killed ends after its step.

    On another machine, a process without a heartbeat for 100 seconds is gone.

    Raises:
        TrackingError: the process goes on for two minutes.
    """
    client, run_id, began = connect(), run.info.run_id, time.monotonic()
    while run.info.status == "RUNNING" and (worker := heartbeat.working_on(run.data.tags, away=SILENT_SECONDS)):
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise TrackingError(f"trial {run.info.run_name} ({run_id}) is still running: {worker}", hint="wait for it")
        time.sleep(1)
        with told(f"read the run {run_id}"):
            run = client.get_run(run_id)
    return run


def closed(run_id: str, reason: str) -> Run:
    """The run after its process has ended; if that could not set the state itself, it is set here.

    Raises:
        TrackingError: the server does not answer.
    """
    client = connect()
    with told(f"read the run {run_id}"):
        run = client.get_run(run_id)
        if run.info.status == "RUNNING":
            client.set_tag(run_id, ERROR, reason)
            client.set_terminated(run_id, "KILLED")
            run = client.get_run(run_id)
    return run


def scores(run: Run) -> Mapping[str, float]:
    """The scores of the trained model, by name as MLflow writes it."""
    return {name.removeprefix(TUNED): value for name, value in run.data.metrics.items() if name.startswith(TUNED)}


def score_key(name: str) -> str:
    """The name of a score as MLflow writes it."""
    return clean_key(f"{TUNED}{name}").removeprefix(TUNED)


def error(run: Run) -> str:
    """Why the run failed, in its first line."""
    return run.data.tags.get(ERROR, "").partition("\n")[0] or "it ended without an error"


def remove_checkpoints(run: Run) -> None:
    """Remove the uploaded checkpoints of a trial that will not continue; a store that cannot delete keeps them."""
    try:
        repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=connect().tracking_uri)
        if any(entry.path == PLACE for entry in repository.list_artifacts()):
            repository.delete_artifacts(PLACE)
    except Exception as error:  # whatever the store's library raises, old checkpoints only take space
        log.debug("the checkpoints of run %s could not be removed: %s", run.info.run_id, error)
