"""A run that ended before its models were registered: what it left in MLflow, and what of that is removed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion

from mlflow_ft.errors import TrackingError
from mlflow_ft.tracking.server import connect, told

CHECKPOINT = "checkpoint-"
"""The names of logged checkpoints begin so; these belong to the training, and stay."""


def find_run(run_id: str) -> Run:
    """The run as the server has it.

    Raises:
        TrackingError: there is none, or it was deleted.
    """
    client = connect()
    with told(f"read the run {run_id}"):
        run = client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(f"the run {run_id} was deleted", hint=f"mlflow runs restore --run-id {run_id}")
    return run


def versions_of(run: Run) -> list[ModelVersion]:
    """The model versions that were registered from the run, in the order of their names."""
    client = connect()
    with told(f"read the model versions of run {run.info.run_id}"):
        found = client.search_model_versions(f"run_id='{run.info.run_id}'")
    return sorted(found, key=lambda version: (version.name, int(version.version)))


def remove(run: Run, *, alias: str) -> list[str]:
    """Delete the models that the run logged, and the versions made of them, and return what was deleted.

    Checkpoints stay. `alias` is the one that the run itself gives.

    Raises:
        TrackingError: one of the versions has another alias, which somebody gave it.
    """
    client = connect()
    versions, models = versions_of(run), _models(client, run)
    with told("remove what the earlier attempt left in MLflow"):
        for version in versions:
            _check_free(client, version, alias)
        for version in versions:
            client.delete_model_version(version.name, str(version.version))
        for model in models:
            client.delete_logged_model(model.model_id)
    names = [f"{version.name} version {version.version}" for version in versions]
    return [*names, *(f"the logged model {model.name}" for model in models)]


def _check_free(client: MlflowClient, version: ModelVersion, alias: str) -> None:
    given = [name for name in client.get_model_version(version.name, str(version.version)).aliases if name != alias]
    if given:
        raise TrackingError(
            f"{version.name} version {version.version}, of the earlier attempt, has the alias {', '.join(given)}",
            hint="it would be replaced: give the alias to another version first",
        )


def _models(client: MlflowClient, run: Run) -> Sequence[LoggedModel]:
    found: list[LoggedModel] = []
    token = None
    with told(f"read the logged models of run {run.info.run_id}"):
        while True:
            page = client.search_logged_models(
                [run.info.experiment_id], filter_string=f"source_run_id='{run.info.run_id}'", page_token=token
            )
            found += [model for model in page if not model.name.startswith(CHECKPOINT)]
            token = page.token
            if not token:
                return found


@contextmanager
def reopening(run: Run) -> Iterator[None]:
    """Let `open_run` open this run. The one that `mlflow run` made for the command is left to `mlflow run`."""
    launched = os.environ.get("MLFLOW_RUN_ID")
    os.environ["MLFLOW_RUN_ID"] = run.info.run_id
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        if launched is not None:
            os.environ["MLFLOW_RUN_ID"] = launched
