"""Data from other runs in MLflow: an artifact, or the data that a run was trained on."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import DataError, FineTuneError, ModelError, brief
from mlflow_ft.tracking import contenders, models
from mlflow_ft.tracking.faults import Fault, fault_of
from mlflow_ft.tracking.inputs import CONTEXT_KEY
from mlflow_ft.tracking.server import check_server, connect, told

TRAINING_CONTEXTS = ("train", "training")


def fetch(uri: str, *, error: type[FineTuneError] = DataError, what: str = "data", into: Path | None = None) -> Path:
    """Download an artifact to a local file or folder, kept until this process ends; do not change it.

    `into` is another folder to download into, which the caller removes.

    Raises:
        `error`, about `what`: the artifact does not exist, or the server does not return it.
        TrackingError: no server answers.
    """
    check_server()
    try:
        holder = into or Path(_folder())
        holder.mkdir(parents=True, exist_ok=True)
        target = tempfile.mkdtemp(dir=holder)
        artifact = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError, ValueError) as reason:
        if fault_of(reason) is Fault.AWAY:
            with told(f"fetch {what} {uri!r}"):
                raise
        raise error(
            f"{what} {uri!r} cannot be fetched from MLflow: {brief(reason)}",
            hint=f"check the run, the path and MLFLOW_TRACKING_URI ({mlflow.get_tracking_uri()})",
        ) from reason
    if not artifact.exists():
        raise error(f"{what} {uri!r}: the store has no such artifact", hint="`mlflow artifacts list` lists them")
    return artifact


def check_uri(uri: str, *, error: type[FineTuneError] = DataError, what: str = "data") -> None:
    """Check that what a URI names exists in MLflow, without downloading it.

    Raises:
        `error`, about `what`: the run, model, version, alias or artifact does not exist.
        TrackingError: no server answers.
    """
    client = connect()
    scheme, _, place = uri.partition(":/")
    try:
        if scheme == "runs":
            _find_artifact(client, place.strip("/"))
        elif scheme == "models":
            models.find(client, uri)
    except (MlflowException, OSError, ModelError) as reason:
        hint = getattr(reason, "hint", "") or f"check the name and MLFLOW_TRACKING_URI ({client.tracking_uri})"
        raise error(f"{what} {uri!r}: {brief(reason)}", hint=hint) from reason


def _find_artifact(client: MlflowClient, place: str) -> None:
    """Raise if `RUN_ID/some/path` names no existing run, or no artifact of it."""
    run_id, _, path = place.partition("/")
    client.get_run(run_id)
    parent = path.rpartition("/")[0]
    paths = [file.path for file in client.list_artifacts(run_id, parent or None)] if path else [path]
    if path not in paths:
        place = f"{parent} has" if parent else "it has"
        raise ModelError(f"the run has no artifact {path!r}", hint=f"{place} {', '.join(paths) or 'none'}")


def read_json(run_id: str, path: str) -> Any:
    """The content of a run's JSON artifact; None if the run has no such artifact.

    Raises:
        TrackingError: the run does not exist.
    """
    client = connect()
    with told(f"read the run {run_id}"):
        client.get_run(run_id)
    return contenders.read(client, run_id, path)


@cache
def _folder() -> str:
    """The folder for this process's downloads; MLflow's own folder would not be removed."""
    folder = tempfile.mkdtemp(prefix="mlflow-ft-fetched-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def trained_on(run_id: str) -> str:
    """The source of the data set that a run recorded as its training input.

    Raises:
        DataError: the run does not exist, or recorded no training data, or several sources of it.
    """
    try:
        run = connect().get_run(run_id)
    except MlflowException as error:
        raise DataError(
            f"data 'runs:/{run_id}': {brief(error)}", hint="check the run and MLFLOW_TRACKING_URI"
        ) from error
    training = [entry for entry in (run.inputs.dataset_inputs if run.inputs else ()) if _is_training(entry)]
    places = list(dict.fromkeys(place for entry in training for place in _places(entry.dataset)))
    if len(places) == 1:
        return places[0]
    recorded = f"several sources: {', '.join(places)}" if places else "no training data among its inputs"
    raise DataError(
        f"data 'runs:/{run_id}': the run recorded {recorded}",
        hint="choose among them" if places else "name one of its artifacts instead: runs:/RUN_ID/path/of/the/file",
    )


def _is_training(entry: DatasetInput) -> bool:
    return any(tag.key == CONTEXT_KEY and tag.value in TRAINING_CONTEXTS for tag in entry.tags)


def _places(dataset: Dataset) -> list[str]:
    """Where a data set came from; empty if the source is not a place (a notebook's code, another program's format)."""
    try:
        source = json.loads(dataset.source)
    except (ValueError, RecursionError):
        return []
    if not isinstance(source, dict):
        return []
    if isinstance(source.get("sources"), list):  # one of our mixtures
        return [str(place) for place in source["sources"]]
    candidates = [source.get(key) for key in ("uri", "path", "url")]
    return [place for place in candidates if isinstance(place, str) and place][:1]
