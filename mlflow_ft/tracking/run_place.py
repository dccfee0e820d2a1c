"""Where a run will be before it is opened: its experiment, its artifacts, and whether these can be written."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH

from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import TrackingError, brief
from mlflow_ft.tracking.databases import check_folder, exists, local_folder
from mlflow_ft.tracking.environ import overriding
from mlflow_ft.tracking.run import AT_ONCE, deleted_experiment
from mlflow_ft.tracking.server import is_http, shown, told
from mlflow_ft.values.inspected import Caution

LATER = "the first artifact of the run, its configuration, will show whether it can be written"


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where a run will be."""

    experiment_id: str | None
    """None if the experiment, or the whole store, does not exist yet."""
    artifacts: str | None
    """The URI below which its artifacts will be; None if only the server knows."""

    @property
    def folder(self) -> Path | None:
        """The folder of its artifacts on this machine; None if they are elsewhere."""
        return local_folder(self.artifacts) if self.artifacts else None


def find(settings: RunSection, run_id: str | None = None, *, environ: Mapping[str, str] = os.environ) -> RunPlace:
    """The place of `run_id`, else of the run that MLFLOW_RUN_ID names, else of a new one. Nothing is created.

    Raises:
        TrackingError: the run or the experiment does not exist, or was deleted, or the server does not answer.
    """
    uri = mlflow.get_tracking_uri()
    new = _new_artifacts()
    if not exists(uri):
        return RunPlace(experiment_id=None, artifacts=new)
    with told("open the store"):
        client = MlflowClient(uri)
    if run_id := run_id or environ.get("MLFLOW_RUN_ID"):
        with told(f"find run {run_id}"):
            info = client.get_run(run_id).info
        return RunPlace(experiment_id=info.experiment_id, artifacts=info.artifact_uri)
    name, number = settings.experiment, environ.get("MLFLOW_EXPERIMENT_ID")
    if not name and not number:
        name = environ.get("MLFLOW_EXPERIMENT_NAME")
    with told(f"find the experiment {name or number or 'Default'}"):
        experiment = client.get_experiment_by_name(name) if name else client.get_experiment(number or "0")
    if experiment is None:
        return RunPlace(experiment_id=None, artifacts=new)
    if experiment.lifecycle_stage == "deleted":
        raise deleted_experiment(experiment.name)
    return RunPlace(experiment_id=experiment.experiment_id, artifacts=experiment.artifact_location)


def check_artifacts(place: RunPlace) -> str | Caution:
    """Check that artifacts can be written below `place.artifacts`, and describe them.

    Nothing is left there: an empty file is uploaded only if it can be deleted again.

    Raises:
        TrackingError: they cannot be written.
    """
    if place.artifacts is None:
        return f"of a new experiment: {LATER}"
    if place.folder is not None:
        check_folder(place.folder, f"the artifact folder {place.folder}", hint=_elsewhere(place.folder))
        return _seen_here_only(place.folder) or str(place.folder)
    if place.artifacts.startswith(("dbfs:", "databricks")):
        return f"{place.artifacts}: {LATER}"
    with overriding(os.environ, AT_ONCE):
        return _uploaded(place.artifacts)


def _seen_here_only(folder: Path) -> Caution | None:
    """A caution if a server on another machine gave this folder, which may be another one there; else None."""
    uri = mlflow.get_tracking_uri()
    if not is_http(uri) or urlsplit(uri).hostname in ("localhost", "127.0.0.1", "::1", socket.gethostname().lower()):
        return None
    return Caution(
        message=f"{shown(uri)} leaves artifacts to its clients: models and files go to {folder} on this machine, where "
        "nobody else sees them unless that folder is shared",
        remedy="start the server with --serve-artifacts and use a new experiment (--run.experiment NAME)",
    )


def _elsewhere(folder: Path) -> str:
    """What to do about an artifact folder that cannot be written."""
    new = _new_artifacts()
    if new is None:
        return (
            "the server leaves artifacts to its clients: make this folder writable here, or start the server with "
            "--serve-artifacts and use a new experiment (--run.experiment NAME)"
        )
    if folder.is_relative_to(new):
        return "make it writable"
    return f"make it writable, or use a new experiment (--run.experiment NAME), whose artifacts go to {new}"


def _new_artifacts() -> str | None:
    """Where the artifacts of a new experiment are; None if only the server knows."""
    return None if is_http(mlflow.get_tracking_uri()) else str(Path(DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).absolute())


def _uploaded(uri: str) -> str | Caution:
    name = f"mlflow-ft-preflight-{uuid.uuid4().hex}"
    try:
        repository = get_artifact_repository(uri)
        if not _may_delete(repository, name):
            return f"{shown(uri)}: {LATER}, as this user may not delete a trial"
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "trial").touch()
            repository.log_artifact(str(Path(scratch) / "trial"), f"{name}/artifacts")
    except Exception as error:  # of boto3's, Google's, Microsoft's or MLflow's client, or one is not installed
        raise TrackingError(
            f"the artifact store {shown(uri)} cannot be written: {_reason(error)}",
            hint="check its credentials, its rights and its space; the log of the server that it belongs to says more",
        ) from error
    try:
        repository.delete_artifacts(name)
    except Exception as error:  # as above; the store can be written, which is what was asked
        return Caution(
            message=f"{shown(uri)} can be written, but the trial {name} could not be deleted: {brief(error)}",
            remedy="delete it",
        )
    return f"{shown(uri)} accepts uploads"


def _reason(error: Exception) -> str:
    """An error of an artifact store in few words; MLflow's for a server that fails is long."""
    status = re.search(r"too many (\d+) error responses", str(error))
    return f"its server answers {status[1]} to an upload" if status else brief(error)


def _may_delete(repository: Any, name: str) -> bool:
    """Whether a folder that does not exist may be deleted; raises what also keeps it from being listed."""
    try:
        repository.delete_artifacts(name)
    except NotImplementedError:
        return False
    except Exception as error:  # as above; only a refusal is an answer
        if _status(error) not in (401, 403, 404, 405, 501):
            raise
        return False
    return True


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of requests, or of boto3."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return dict(response.get("ResponseMetadata", {})).get("HTTPStatusCode")
    return getattr(response, "status_code", None)
