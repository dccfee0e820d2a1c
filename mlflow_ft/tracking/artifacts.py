"""What other runs left in MLflow, as a source of data: an artifact, or the data that a run was trained on."""

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
from mlflow_ft.tracking.inputs import CONTEXT_KEY
from mlflow_ft.tracking.server import check_server, connect, told

TRAINING_CONTEXTS = ("train", "training")


def fetch(uri: str, *, error: type[FineTuneError] = DataError, what: str = "data", into: Path | None = None) -> Path:
    """An artifact as a local file or folder, which is there until this process ends; it is not to be changed.

    `into` names the folder that holds it, where it is not needed for so long.

    Raises:
        `error`, about `what`: there is no such artifact, or the server does not give it.
        TrackingError: no server answers.
    """
    check_server()
    try:
        holder = into or Path(_folder())
        holder.mkdir(parents=True, exist_ok=True)
        target = tempfile.mkdtemp(dir=holder)
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError, ValueError) as reason:
        raise error(
            f"{what} {uri!r} cannot be fetched from MLflow: {brief(reason)}",
            hint=f"check the run, the path and MLFLOW_TRACKING_URI (it is {mlflow.get_tracking_uri()})",
        ) from reason
    if not found.exists():
        raise error(f"{what} {uri!r}: the store has no such artifact", hint="list them with `mlflow artifacts list`")
    return found


def check_uri(uri: str, *, error: type[FineTuneError] = DataError, what: str = "data") -> None:
    """Find out whether MLflow knows what a URI names, without fetching it.

    Raises:
        `error`, about `what`: there is no such run, model, version, alias or artifact.
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
        hint = getattr(reason, "hint", "") or f"check the name and MLFLOW_TRACKING_URI (it is {client.tracking_uri})"
        raise error(f"{what} {uri!r}: {brief(reason)}", hint=hint) from reason


def _find_artifact(client: MlflowClient, place: str) -> None:
    """Raise where there is no such run, or it has no such artifact: `RUN_ID/some/path`."""
    run_id, _, path = place.partition("/")
    client.get_run(run_id)
    parent = path.rpartition("/")[0]
    there = [one.path for one in client.list_artifacts(run_id, parent or None)] if path else [path]
    if path not in there:
        raise ModelError(f"the run has no artifact {path!r}", hint=f"it has {', '.join(there) or 'none there'}")


def read_json(run_id: str, path: str) -> Any:
    """What a run has in a JSON artifact; None where it has no such artifact.

    Raises:
        TrackingError: there is no such run.
    """
    client = connect()
    with told(f"read {path} of run {run_id}"):
        client.get_run(run_id)
    return contenders.read(client, run_id, path)


@cache
def _folder() -> str:
    """Where this process keeps what it fetches; MLflow's own would be left behind."""
    folder = tempfile.mkdtemp(prefix="mlflow-ft-fetched-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def trained_on(run_id: str) -> str:
    """The source of the data set that a run names as its training input.

    Raises:
        DataError: there is no such run, or it names no training data, or several sources of it.
    """
    try:
        run = connect().get_run(run_id)
    except MlflowException as error:
        raise DataError(
            f"data 'runs:/{run_id}': {brief(error)}", hint="check the run and MLFLOW_TRACKING_URI"
        ) from error
    used = [one for one in (run.inputs.dataset_inputs if run.inputs else ()) if _is_training(one)]
    places = list(dict.fromkeys(place for one in used for place in _places(one.dataset)))
    if len(places) == 1:
        return places[0]
    told = f"several sources: {', '.join(places)}" if places else "no training data among its inputs"
    raise DataError(
        f"data 'runs:/{run_id}': the run names {told}",
        hint="name the ones that are meant"
        if places
        else "name one of its artifacts instead: runs:/RUN_ID/path/of/the/file",
    )


def _is_training(used: DatasetInput) -> bool:
    return any(tag.key == CONTEXT_KEY and tag.value in TRAINING_CONTEXTS for tag in used.tags)


def _places(dataset: Dataset) -> list[str]:
    """Where a data set came from; none where that is no place (the code of a notebook, another program's own words)."""
    try:
        source = json.loads(dataset.source)
    except (ValueError, RecursionError):
        return []
    if not isinstance(source, dict):
        return []
    if isinstance(source.get("sources"), list):  # a mixture of ours
        return [str(place) for place in source["sources"]]
    found = [source.get(key) for key in ("uri", "path", "url")]
    return [place for place in found if isinstance(place, str) and place][:1]
