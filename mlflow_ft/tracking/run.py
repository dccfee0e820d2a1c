"""Open the MLflow run of a job, and close it in its true state."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import StoppedError, TrackingError, UndeliveredError, out_of_memory
from mlflow_ft.plugins import Plugins
from mlflow_ft.processes import check_single
from mlflow_ft.tracking import vanished
from mlflow_ft.tracking.active import ActiveRun, cut
from mlflow_ft.tracking.delivery import RunFile, pending
from mlflow_ft.tracking.environment import plugin_tag
from mlflow_ft.tracking.heartbeat import TAG, Heart, launcher
from mlflow_ft.tracking.server import absolute, answers, shown, told
from mlflow_ft.tracking.signals import StopSignals

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # `insist` and the journal wait longer and can be interrupted
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # stages report their own progress
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout may be read by a program
}
"""MLflow settings for the duration of a run, unless the user has set them."""
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
LONGEST_ERROR = 5000
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

    The state is FINISHED if the block succeeds, KILLED on StoppedError or KeyboardInterrupt, else FAILED, with the
    message in tag `mlflow_ft.error` and the stage in `mlflow_ft.stage`. SIGTERM and SIGINT raise StoppedError inside
    the block.

    Raises:
        ConfigError: a launcher started several processes, each of which would open a run.
        TrackingError: the run cannot be opened.
        UndeliveredError: the block succeeded, but metrics or the state did not reach the server.
    """
    check_single(environ)
    error: BaseException | None
    signals, launched = StopSignals(), "MLFLOW_RUN_ID" in environ
    unset = {name: value for name, value in DEFAULTS.items() if name not in environ}
    with signals.installed(), variables(environ, unset):
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
            error = signals.instead_of(raised) or out_of_memory(raised) or raised
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
            run.open_journal(folder)
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
    with told(f"open run {run_id}, named by MLFLOW_RUN_ID" if run_id else "open a run"):
        started = mlflow.start_run(
            run_id=run_id,
            run_name=settings.name,
            experiment_id=None if run_id or settings.experiment is None else experiment_id(settings.experiment),
            log_system_metrics=False,
        )
    run = ActiveRun(
        run_id=started.info.run_id,
        experiment_id=started.info.experiment_id,
        tracking_uri=absolute(mlflow.get_tracking_uri()),
        signals=signals,
        resumed=run_id is not None,
    )
    try:
        for stale in started.data.tags.keys() & {"mlflow_ft.error", "mlflow_ft.stage"}:
            run.client.delete_tag(run.run_id, stale)
        run.set_tags(plugin_tag(plugins))
    except BaseException as error:
        _close(run, _state_of(error), error)
        raise
    return run


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
    if isinstance(error, StoppedError | KeyboardInterrupt):
        return "KILLED"
    ended_well = isinstance(error, SystemExit) and error.code in (None, 0)
    return "FINISHED" if ended_well else "FAILED"


def _close(run: ActiveRun, status: str, error: BaseException | None) -> str:
    """Set the state, deliver the journal, and return a sentence about what did not reach the server.

    The state comes first, because a scheduler may kill us while we wait. Metrics can still be sent to an ended run.
    """
    run.stop_system_metrics()
    _leave_fluent_run(status)
    is_set = _set_state(run, status, error)
    left = run.close_journal(PATIENCE_WHEN_KILLED_SECONDS if status == "KILLED" else PATIENCE_SECONDS)
    is_set = is_set or _set_state(run, status, error)
    run.finish_uploads()
    if is_set and not left:
        return ""
    where = run.folder / "journal.jsonl" if run.folder else "no journal"
    message = f"{left} metrics ({where}) and the state {status} did not reach {shown(run.tracking_uri)}"
    if is_set:
        message = f"{left} metrics ({where}) did not reach {shown(run.tracking_uri)}"
    if run.folder:
        RunFile(
            run_id=run.run_id,
            tracking_uri=run.tracking_uri,
            experiment_id=run.experiment_id,
            pending_status=status,
        ).write(run.folder)
    if error is not None:
        log.warning("%s; %s", message, _remedy(run))
    return message


def _set_state(run: ActiveRun, status: str, error: BaseException | None) -> bool:
    if not answers(run.tracking_uri):
        return False
    try:
        run.client.set_terminated(run.run_id, status)
        with suppress(MlflowException):  # there is none where the server did not answer
            run.client.delete_tag(run.run_id, TAG)
        if error is not None and status != "FINISHED":
            text = cut(str(error) or type(error).__name__, LONGEST_ERROR)
            run.client.set_tag(run.run_id, "mlflow_ft.error", text)
            run.client.set_tag(run.run_id, "mlflow_ft.stage", run.stage)
    except Exception as refused:  # must not replace an error that is on its way to the user
        log.warning("could not mark run %s as %s: %s", run.run_id, status, refused)
        return False
    return True


def _leave_fluent_run(status: str) -> None:
    """Empty MLflow's stack of active runs; otherwise its exit handler marks ours FINISHED, whatever happened."""
    with variables(os.environ, AT_ONCE):
        while mlflow.active_run() is not None:
            try:
                mlflow.end_run(status)
            except Exception as error:  # the run is off the stack before the server is called
                log.debug("end_run: %s", error)


def _remedy(run: ActiveRun) -> str:
    if run.folder is None:
        return f"when the server is back, set the state of run {run.run_id}"
    return f"nothing is lost; when the server is back, run: mlflow-ft sync {run.folder}"


@contextmanager
def variables(environ: MutableMapping[str, str], values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the duration of a block."""
    before = {name: environ.get(name) for name in values}
    environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


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
        client.set_tag(run_id, "mlflow_ft.error", cut(str(error), LONGEST_ERROR))
        client.set_tag(run_id, "mlflow_ft.stage", stage)
        client.set_terminated(run_id, "FAILED")
    except MlflowException as refused:
        log.warning("could not mark run %s as FAILED: %s", run_id, refused)
