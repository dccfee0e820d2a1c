"""What other runs left in MLflow, as a source of data: an artifact, or the data that a run was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import DataError
from mlflow_ft.tracking.inputs import CONTEXT_KEY

TRAINING_CONTEXTS = ("train", "training")


def fetch(uri: str) -> Path:
    """An artifact as a local file or folder; a local store gives the one it keeps, which is not to be changed.

    Raises:
        DataError: there is no such artifact, or the server does not give it.
    """
    try:
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data {uri!r} cannot be fetched from MLflow: {reason}",
            hint=f"check the run, the path and MLFLOW_TRACKING_URI (it is {mlflow.get_tracking_uri()})",
        ) from error
    if not found.exists():
        raise DataError(f"data {uri!r}: the store has no such artifact", hint="list them with `mlflow artifacts list`")
    return found


def trained_on(run_id: str) -> str:
    """The source of the data set that a run names as its training input.

    Raises:
        DataError: there is no such run, or it names no training data.
    """
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data 'runs:/{run_id}': {reason}", hint="check the run and MLFLOW_TRACKING_URI") from error
    for used in run.inputs.dataset_inputs if run.inputs else ():
        contexts = {tag.value for tag in used.tags if tag.key == CONTEXT_KEY}
        if contexts & set(TRAINING_CONTEXTS):
            source = json.loads(used.dataset.source)
            place = source.get("uri") or source.get("path") or source.get("url")
            if isinstance(place, str):
                return place
    raise DataError(
        f"data 'runs:/{run_id}': the run names no training data among its inputs",
        hint="name one of its artifacts instead: runs:/RUN_ID/path/of/the/file",
    )
