"""A run folder's record of its MLflow run, and the delivery of what an outage held up (`mlflow-ft sync`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient

from mlflow_ft.errors import TrackingError, UndeliveredError
from mlflow_ft.tracking.journal import Journal
from mlflow_ft.tracking.metrics import sender
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


def deliver(folder: Path) -> int:
    """Send the entries left in the folder's journal, set the state the run ended in, and return the number sent.

    Raises:
        TrackingError: the folder is not a run's, or its server does not answer.
        UndeliveredError: the server answers but does not accept the rest.
    """
    run_file = RunFile.read(folder)
    check_server(run_file.tracking_uri)
    send = sender(tracking_uri=run_file.tracking_uri, run_id=run_file.run_id)
    journal = Journal(folder / JOURNAL_FILE, send, background=False)
    try:
        count = journal.replay()
    except Exception as error:  # whatever it was, the entries are kept
        raise UndeliveredError(
            f"{journal.pending} entries of {journal.path} did not reach {shown(run_file.tracking_uri)}: {error}",
            hint=f"try again: mlflow-ft sync {folder}",
        ) from error
    finally:
        journal.close(0)
    if run_file.pending_status:
        with told(f"mark run {run_file.run_id} as {run_file.pending_status}"):
            MlflowClient(run_file.tracking_uri).set_terminated(run_file.run_id, run_file.pending_status)
        replace(run_file, pending_status=None).write(folder)
    return count
