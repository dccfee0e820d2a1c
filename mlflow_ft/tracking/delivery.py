"""A run folder's record of its MLflow run, and the delivery of what an outage held up (`mlflow-ft sync`)."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient

from mlflow_ft.errors import TrackingError, UndeliveredError
from mlflow_ft.tracking import heartbeat, notes, run_lock
from mlflow_ft.tracking.environ import SILENT, overriding
from mlflow_ft.tracking.faults import REMEDIES, fault_of, words
from mlflow_ft.tracking.journal import Journal
from mlflow_ft.tracking.metrics import sender
from mlflow_ft.tracking.notes import ERROR, STAGE
from mlflow_ft.tracking.outbox import FOLDER as OUTBOX
from mlflow_ft.tracking.outbox import Outbox, Place
from mlflow_ft.tracking.server import check_server, shown, told

JOURNAL_FILE = "journal.jsonl"
RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """`run.json`: where the run is, and the state that it must still be set to."""

    run_id: str
    tracking_uri: str
    experiment_id: str
    pending_status: str | None = None
    """The state in which the run ended, if the server did not receive it or lacks metrics."""
    ended_ms: int | None = None
    """When it ended in that state, in milliseconds since the epoch."""
    error: str = ""
    """The message of the error that ended it."""
    stage: str = ""
    """The stage that the error ended."""
    unfinished: bool = False
    """Whether stages of the run are left, because the server did not accept a model or a version."""

    @classmethod
    def opened(cls, folder: Path, run_id: str, tracking_uri: str, experiment_id: str) -> RunFile:
        """The record of a run that is open; stages that an earlier process left are still left."""
        left = stages_left(folder)
        return cls(run_id=run_id, tracking_uri=tracking_uri, experiment_id=experiment_id, unfinished=left)

    def write(self, folder: Path) -> None:
        """Write the file atomically, readable by its owner only, because a URI may contain a password."""
        aside = folder / (RUN_FILE + ".new")
        aside.unlink(missing_ok=True)
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        aside.replace(folder / RUN_FILE)

    @classmethod
    def read(cls, folder: Path) -> RunFile:
        try:
            return cls(**json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrackingError(
                f"{folder} is not a run's folder: {folder / RUN_FILE} cannot be read ({type(error).__name__})",
                hint="pass the folder that the run printed, outputs/<run id>",
            ) from error


def pending(folder: Path) -> bool:
    """Whether the folder's run ended in a state, or with metrics, that the server has not received."""
    return (folder / RUN_FILE).is_file() and RunFile.read(folder).pending_status is not None


def set_state(client: MlflowClient, run: RunFile, status: str) -> None:
    """Set the state that a run ended in, with the error and the stage as tags, and remove its heartbeat."""
    with overriding(os.environ, SILENT):
        client.set_terminated(run.run_id, status, end_time=run.ended_ms)
    tags = client.get_run(run.run_id).data.tags
    wanted: dict[str, str] = {}
    if run.error and status != "FINISHED":
        wanted = notes.error_tags(tags.get(notes.NOTE, ""), status, stage=run.stage, error=run.error)
    for key, value in wanted.items():
        client.set_tag(run.run_id, key, value)
    for key in ({ERROR, STAGE, heartbeat.TAG} - wanted.keys()) & tags.keys():
        client.delete_tag(run.run_id, key)


def deliver(folder: Path) -> int:
    """Send what is left in the folder's journal and outbox, set the state the run ended in; the number of entries sent.

    Raises:
        TrackingError: the folder is not a run's, another process is using it, or its server does not answer.
        UndeliveredError: the server answers but does not accept the rest.
    """
    run_file = RunFile.read(folder)
    lock = run_lock.acquired(folder, run_file.run_id)
    try:
        check_server(run_file.tracking_uri)
        count = _deliver_metrics(folder, run_file) + _deliver_outbox(folder, run_file)
        if run_file.pending_status:
            with told(f"mark run {run_file.run_id} as {run_file.pending_status}"):
                set_state(MlflowClient(run_file.tracking_uri), run_file, run_file.pending_status)
            replace(run_file, pending_status=None).write(folder)
        return count
    finally:
        lock.release()


def _deliver_metrics(folder: Path, run_file: RunFile) -> int:
    send = sender(tracking_uri=run_file.tracking_uri, run_id=run_file.run_id)
    journal = Journal(folder / JOURNAL_FILE, send, background=False)
    try:
        return journal.replay()
    except Exception as error:  # whatever it was, the entries are kept
        raise _undelivered(f"{journal.pending} entries of {journal.path}", folder, run_file, error) from error
    finally:
        journal.close(0)


def _deliver_outbox(folder: Path, run_file: RunFile) -> int:
    client = MlflowClient(run_file.tracking_uri)
    place = Place(client=client, run_id=run_file.run_id, experiment_id=run_file.experiment_id, folder=folder.absolute())
    outbox = Outbox(place)
    try:
        return outbox.deliver()
    except Exception as error:  # whatever it was, the requests are kept
        where = folder / OUTBOX
        raise _undelivered(f"{outbox.pending} entries of {where}", folder, run_file, error) from error


def _undelivered(what: str, folder: Path, run_file: RunFile, error: Exception) -> UndeliveredError:
    remedy = REMEDIES[fault_of(error)]
    return UndeliveredError(
        f"{what} did not reach {shown(run_file.tracking_uri)}: {words(error)}",
        hint=f"{remedy or 'when that is fixed'}, then try again: mlflow-ft sync {folder}",
    )


def stages_left(folder: Path) -> bool:
    """Whether stages of the folder's run are left, because the server did not accept a model or a version."""
    return (folder / RUN_FILE).is_file() and RunFile.read(folder).unfinished


def take_up(folder: Path, *, environ: MutableMapping[str, str] = os.environ) -> str:
    """The run of the folder if stages of it are left, with its server set as MLflow's; "" if none are left."""
    if not stages_left(folder):
        return ""
    run_file = RunFile.read(folder)
    environ["MLFLOW_TRACKING_URI"] = run_file.tracking_uri
    return run_file.run_id
