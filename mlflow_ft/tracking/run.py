"""Open the MLflow run of a job, and close it in its true state."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlflow_ft import processes
from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import (
    ConfigError,
    PrunedError,
    RefusedError,
    StoppedError,
    TrackingError,
    UndeliveredError,
    exited,
    out_of_memory,
)
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import notes, vanished
from mlflow_ft.tracking.active import ActiveRun
from mlflow_ft.tracking.created_once import RunRequest
from mlflow_ft.tracking.delivery import RUN_FILE, RunFile, pending, set_state, stages_left
from mlflow_ft.tracking.environ import SILENT, overriding
from mlflow_ft.tracking.environment import plugin_tag
from mlflow_ft.tracking.faults import words
from mlflow_ft.tracking.heartbeat import Heart, launcher
from mlflow_ft.tracking.notes import ERROR, STAGE
from mlflow_ft.tracking.run_values import cut
from mlflow_ft.tracking.server import absolute, answers, insist, patience, shown
from mlflow_ft.tracking.signals import StopSignals

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # `insist` and the journal wait longer and can be interrupted
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # stages report their own progress
    **SILENT,
}
"""MLflow settings for the duration of a run, unless the user has set them."""
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
LONGEST_ERROR = 5000
OPENING_SECONDS = 10.0
"""How long a new run waits for a server that answered a moment ago."""
PATIENCE_SECONDS = 30.0
"""How long the end of a run waits for the journal without any progress."""
PATIENCE_WHEN_KILLED_SECONDS = 8.0
"""The same after a signal: schedulers send SIGKILL after 10 to 30 seconds."""
log = logging.getLogger(__name__)


@contextmanager
def open_run(
    settings: RunSection, *, plugins: Plugins, environ: MutableMapping[str, str] = os.environ
) -> Iterator[ActiveRun]:
    """Open the run that MLFLOW_RUN_ID names, else a new one, and close it in its true state.

    The state is FINISHED if the block succeeds, KILLED on StoppedError, PrunedError or KeyboardInterrupt, else FAILED,
    with the message in tag `mlflow_ft.error` and the stage in `mlflow_ft.stage`. SIGTERM and SIGINT raise StoppedError
    inside the block.

    Raises:
        ConfigError: this process is one of several, and not the first.
        TrackingError: the run cannot be opened.
        UndeliveredError: the block succeeded, but metrics or the state did not reach the server.
    """
    if not (place := processes.place(environ)).leads:
        raise ConfigError(f"process {place.rank} of {place.size} opens no run of its own: rank 0 has it")
    error: BaseException | None
    signals, launched = StopSignals(), "MLFLOW_RUN_ID" in environ
    unset = {name: value for name, value in DEFAULTS.items() if name not in environ}
    with signals.installed(), overriding(environ, unset):
        vanished.reap_quietly()
        with signals.holding():
            run = _start(settings, plugins, environ=environ, signals=signals)
        heart = Heart(run, launched_by=launcher() if launched else None)
        status, error = "FAILED", None
        try:
            heart.begin()
            signals.check()
            yield run
            status = "FINISHED"
        except BaseException as raised:
            error = signals.instead_of(raised) or out_of_memory(raised) or exited(raised) or raised
            status = _state_of(error)
            if error is not raised:
                raise error from raised
            raise
        finally:
            with signals.holding():
                heart.end()
                undelivered = _close(run, status, error)
        if undelivered:
            raise UndeliveredError(undelivered, hint=_remedy(run))


@contextmanager
def open_operation(name: str, *, plugins: Plugins) -> Iterator[ActiveRun]:
    """Open a run for a command on finished models: the one that MLFLOW_RUN_ID names, else a new one called `name`.

    Like `open_run`, but the journal is in a temporary folder, which is kept if the server has not received everything.
    """
    settings = RunSection(name=None if "MLFLOW_RUN_ID" in os.environ else name)
    folder = Path(tempfile.mkdtemp(prefix="mlflow-ft-run-"))
    try:
        with open_run(settings, plugins=plugins) as run:
            run.open_journal(folder, continues=False)
            yield run
    finally:
        if not pending(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _start(
    settings: RunSection, plugins: Plugins, *, environ: MutableMapping[str, str], signals: StopSignals
) -> ActiveRun:
    run_id = environ.pop("MLFLOW_RUN_ID", None)  # removed, as mlflow.start_run does, so that children do not open it
    if (other := mlflow.active_run()) is not None:
        raise TrackingError(f"run {other.info.run_id} is active in this process", hint="end it: mlflow.end_run()")
    started = _opened(settings, run_id)
    run = ActiveRun(
        run_id=started.info.run_id,
        experiment_id=started.info.experiment_id,
        tracking_uri=absolute(mlflow.get_tracking_uri()),
        opened=started,
        signals=signals,
        resumed=run_id is not None,
    )
    try:
        for stale in started.data.tags.keys() & {ERROR, STAGE}:
            run.client.delete_tag(run.run_id, stale)
        if (note := started.data.tags.get(notes.NOTE, "")) != notes.without_end(note):
            run.client.set_tag(run.run_id, notes.NOTE, notes.without_end(note))
        run.set_tags(plugin_tag(plugins))
    except BaseException as error:
        _close(run, _state_of(error), error)
        raise
    return run


def _opened(settings: RunSection, run_id: str | None) -> Run:
    """The run, which is created once, also if the answer is lost; nobody waits here for a server that is away."""
    request = RunRequest(MlflowClient())

    def start() -> Run:
        if run_id:
            return mlflow.start_run(run_id=run_id, run_name=settings.name, log_system_metrics=False)
        experiment = None if settings.experiment is None else experiment_id(settings.experiment)
        return request.make(
            lambda tags: mlflow.start_run(
                run_name=settings.name, experiment_id=experiment, tags=dict(tags), log_system_metrics=False
            ),
            adopt=lambda run: mlflow.start_run(run_id=run.info.run_id, log_system_metrics=False),
        )

    what = f"open run {run_id}, named by MLFLOW_RUN_ID" if run_id else "open a run"
    return insist(what, start, uri=absolute(mlflow.get_tracking_uri()), seconds=OPENING_SECONDS)


def experiment_id(name: str, *, client: MlflowClient | None = None) -> str:
    """Id of the experiment, which is created if necessary."""
    client = client or MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise another run created it first
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        raise deleted_experiment(name)
    return str(experiment.experiment_id)


def deleted_experiment(name: str) -> TrackingError:
    """The error for an experiment that was deleted."""
    return TrackingError(
        f"the experiment {name!r} was deleted",
        hint="restore it with `mlflow experiments restore`, or choose another run.experiment",
    )


def _state_of(error: BaseException) -> str:
    return "KILLED" if isinstance(error, StoppedError | PrunedError | KeyboardInterrupt) else "FAILED"


def _close(run: ActiveRun, status: str, error: BaseException | None) -> str:
    """Set the state, deliver journal and outbox, and return a sentence about what did not reach the server.

    The state comes first, because a scheduler may kill us while we wait. An ended run still accepts everything.
    """
    run.stop_system_metrics()
    _leave_fluent_run(status)
    record = _record(run, status, error)
    is_set = _set_state(run, record, status)
    killed = status == "KILLED"
    seconds = PATIENCE_WHEN_KILLED_SECONDS if killed else min(PATIENCE_SECONDS, patience())
    metrics, others = run.close(seconds, deliver=not killed)
    is_set = is_set or _set_state(run, record, status)
    delivered = is_set and not metrics and not others
    if run.folder and (record.unfinished or not delivered or stages_left(run.folder)):
        try:
            replace(record, pending_status=None if delivered else status).write(run.folder)
        except OSError as full:  # must not replace the error that is on its way to the user
            log.warning("%s could not be written: %s", run.folder / RUN_FILE, full)
    if delivered:
        return ""
    left = [f"{metrics} metrics" if metrics else "", f"{others} other entries" if others else ""]
    left += ["" if is_set else f"the state {status}"]
    message = f"{' and '.join(filter(None, left))} did not reach {shown(run.tracking_uri)}"
    message += f"; they are kept in {run.folder}" if run.folder else ""
    if error is not None:
        log.warning("%s; %s", message, _remedy(run))
    return message


def _record(run: ActiveRun, status: str, error: BaseException | None) -> RunFile:
    """How the run ended. Stages that were left stay left, unless the run has finished or evidence has ended it."""
    ended = status == "FINISHED" or isinstance(error, RefusedError)
    earlier = run.folder is not None and stages_left(run.folder)
    failed = error is not None and status != "FINISHED"
    return RunFile(
        run_id=run.run_id,
        tracking_uri=run.tracking_uri,
        experiment_id=run.experiment_id,
        ended_ms=int(time.time() * 1000),
        error=cut(str(error) or type(error).__name__, LONGEST_ERROR) if failed else "",
        stage=run.stage if failed else "",
        unfinished=run.unfinished or (earlier and not ended),
    )


def _set_state(run: ActiveRun, record: RunFile, status: str) -> bool:
    if not answers(run.tracking_uri):
        return False
    try:
        set_state(run.client, record, status)
    except Exception as refused:  # must not replace an error that is on its way to the user
        log.warning("could not mark run %s as %s: %s", run.run_id, status, words(refused))
        return False
    return True


def _leave_fluent_run(status: str) -> None:
    """Empty MLflow's stack of active runs; otherwise its exit handler marks ours FINISHED, whatever happened."""
    with overriding(os.environ, AT_ONCE):
        while mlflow.active_run() is not None:
            try:
                mlflow.end_run(status)
            except Exception as error:  # the run is off the stack before the server is called
                log.debug("end_run: %s", error)


def _remedy(run: ActiveRun) -> str:
    if run.folder is None:
        return f"when the server is back, set the state of run {run.run_id}"
    return f"nothing is lost; when the server is back, run: mlflow-ft sync {run.folder}"


def refuse(error: Exception, *, stage: str = "config", environ: MutableMapping[str, str] = os.environ) -> None:
    """Mark the run that `mlflow run` opened FAILED with the message, for an error raised before `open_run`.

    It does nothing without such a run, or if the server does not answer: reporting the error itself matters more.
    """
    run_id = environ.get("MLFLOW_RUN_ID")
    uri = absolute(mlflow.get_tracking_uri())
    if not run_id or not answers(uri):
        return
    client = MlflowClient(uri)
    try:
        note = client.get_run(run_id).data.tags.get(notes.NOTE, "")
        for key, value in notes.error_tags(note, "FAILED", stage=stage, error=cut(str(error), LONGEST_ERROR)).items():
            client.set_tag(run_id, key, value)
        client.set_terminated(run_id, "FAILED")
    except MlflowException as refused:
        log.warning("could not mark run %s as FAILED: %s", run_id, refused)
