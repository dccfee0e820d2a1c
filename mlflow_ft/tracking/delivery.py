"""What a run's folder knows of its MLflow run, and the delivery of what an outage kept back (`mlflow-ft sync`)."""

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
    """`run.json`: where the run lives, and the state it has still to be set to."""

    run_id: str
    tracking_uri: str
    experiment_id: str
    pending_status: str | None = None
    """The run ended so, but the server could not be told, or lacks metrics."""

    def write(self, folder: Path) -> None:
        """Write it whole or not at all; readable by its owner only, since a URI may hold a password."""
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
                f"{folder} is no folder of a run: {folder / RUN_FILE} cannot be read ({type(error).__name__})",
                hint="name the folder that the run printed, outputs/<run id>",
            ) from error


def pending(folder: Path) -> bool:
    """Whether the folder's run ended in a state, or with metrics, that the server has not received."""
    return (folder / RUN_FILE).is_file() and RunFile.read(folder).pending_status is not None


def deliver(folder: Path) -> int:
    """Send what the folder's journal still holds, set the state the run ended in; return how many entries went.

    Raises:
        TrackingError: the folder is no run's, or its server does not answer.
        UndeliveredError: the server answers, but does not take the rest.
    """
    run_file = RunFile.read(folder)
    check_server(run_file.tracking_uri)
    send = sender(tracking_uri=run_file.tracking_uri, run_id=run_file.run_id)
    journal = Journal(folder / JOURNAL_FILE, send, background=False)
    try:
        count = journal.replay()
    except Exception as error:  # told as what it is: kept, not lost
        raise UndeliveredError(
            f"{journal.pending} entries of {journal.path} are not delivered to {shown(run_file.tracking_uri)}: {error}",
            hint=f"try again: mlflow-ft sync {folder}",
        ) from error
    finally:
        journal.close(0)
    if run_file.pending_status:
        with told(f"mark run {run_file.run_id} as {run_file.pending_status}"):
            MlflowClient(run_file.tracking_uri).set_terminated(run_file.run_id, run_file.pending_status)
        replace(run_file, pending_status=None).write(folder)
    return count
