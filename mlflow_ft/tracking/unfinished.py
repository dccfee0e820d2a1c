"""A run that ended before its models were registered: what it left in MLflow, and the removal of its models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import TrackingError
from mlflow_ft.tracking import run_place, trials, vanished
from mlflow_ft.tracking.created_once import MODEL_ID
from mlflow_ft.tracking.server import connect, every, told

REFUSED = "mlflow_ft.refused"
CONFIG_KEY = "mlflow.mlflow_ft.config_key"
"""Tag with the hash of the resolved settings, by which `run.resume` auto finds the interrupted run."""
FOLDER = "mlflow.mlflow_ft.folder"
"""Tag with the folder of the run's files."""
REPRODUCES = "mlflow_ft.reproduces"
"""Tag of a reproduction with the id of the original run: it registers nothing, and is started again, not resumed."""
CHECKPOINT = "checkpoint-"
"""Prefix of the names of logged checkpoints, which belong to the training and are kept."""


def find_run(run_id: str) -> Run:
    """The run as it is on the server.

    Raises:
        TrackingError: it does not exist or was deleted.
    """
    client = connect()
    with told(f"read the run {run_id}"):
        run = client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(f"the run {run_id} was deleted", hint=f"mlflow runs restore --run-id {run_id}")
    return run


def children(run_id: str) -> dict[str, Run]:
    """The nested runs of a chain that were killed or finished, by name: the latest of each that recorded its settings.

    A chain that was killed may not have recorded that a stage finished.

    Raises:
        TrackingError: the server does not answer.
    """
    vanished.reap_quietly()
    client = connect()
    with told(f"read the nested runs of {run_id}"):
        experiment = client.get_run(run_id).info.experiment_id
        nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=100)
    by_name: dict[str, Run] = {}
    for run in nested:
        if run.info.status in ("KILLED", "FINISHED") and CONFIG_KEY in run.data.tags:
            by_name.setdefault(run.info.run_name, run)
    return by_name


def outcome(run: Run) -> dict[str, Any]:
    """What a stage of a chain prints when it finishes, as far as later stages need it."""
    versions = [
        {"name": version.name, "version": int(version.version), "model_id": version.tags.get(MODEL_ID, "")}
        for version in versions_of(run)
    ]
    return {"run_id": run.info.run_id, "versions": versions}


def latest(key: str, settings: RunSection) -> str | None:
    """The id of the latest run with these settings that was killed or failed; None without one.

    It must be in the experiment of a new run. A run whose model was refused is not interrupted, and a trial continues
    with its sweep.

    Raises:
        TrackingError: the server does not answer.
    """
    client, place = connect(), run_place.find(settings)
    if place.experiment_id is None:
        return None
    with told("look for an interrupted run"):
        runs = client.search_runs([place.experiment_id], f"tags.`{CONFIG_KEY}` = '{key}'", max_results=100)
    interrupted = (
        run
        for run in runs
        if run.info.status in ("KILLED", "FAILED") and not {REFUSED, trials.SWEEP} & run.data.tags.keys()
    )
    return next((str(run.info.run_id) for run in interrupted), None)


def versions_of(run: Run) -> list[ModelVersion]:
    """The model versions registered from the run, ordered by name and number."""
    client = connect()
    with told(f"read the model versions of run {run.info.run_id}"):
        versions = client.search_model_versions(f"run_id='{run.info.run_id}'")
    return sorted(versions, key=lambda version: (version.name, int(version.version)))


def remove(run: Run, *, alias: str) -> list[str]:
    """Delete the models that the run logged and the versions registered from them, and return what was deleted.

    Logged checkpoints are kept. `alias` is the one that the run itself sets.

    Raises:
        TrackingError: one of the versions has another alias, set by a user.
    """
    client = connect()
    versions = versions_of(run)
    models = [model for model in _models(client, run) if _step(model) is None]
    with told("remove the models of the earlier attempt"):
        for version in versions:
            _check_free(client, version, alias)
        for version in versions:
            client.delete_model_version(version.name, str(version.version))
        for model in models:
            client.delete_logged_model(model.model_id)
    names = [f"{version.name} version {version.version}" for version in versions]
    return [*names, *(f"the logged model {model.name}" for model in models)]


def remove_checkpoints(run: Run, *, after: int) -> list[str]:
    """Delete the checkpoints that the run logged as models after a step, and return what was deleted."""
    client = connect()
    later = [model for model in _models(client, run) if (_step(model) or 0) > after]
    with told("remove later checkpoints"):
        for model in later:
            client.delete_logged_model(model.model_id)
    return [f"the logged model {model.name}" for model in later]


def _check_free(client: MlflowClient, version: ModelVersion, alias: str) -> None:
    others = [name for name in client.get_model_version(version.name, str(version.version)).aliases if name != alias]
    if others:
        raise TrackingError(
            f"{version.name} version {version.version}, from the earlier attempt, has the alias {', '.join(others)}",
            hint="it would be deleted: move the alias to another version first",
        )


def _models(client: MlflowClient, run: Run) -> Sequence[LoggedModel]:
    experiments, condition = [run.info.experiment_id], f"source_run_id='{run.info.run_id}'"
    with told(f"read the logged models of run {run.info.run_id}"):
        return list(
            every(lambda token: client.search_logged_models(experiments, filter_string=condition, page_token=token))
        )


def _step(model: LoggedModel) -> int | None:
    """The step of a logged checkpoint; None for any other model."""
    step = model.name.removeprefix(CHECKPOINT)
    return int(step) if model.name.startswith(CHECKPOINT) and step.isdecimal() else None


@contextmanager
def reopening(run: Run) -> Iterator[None]:
    """Make `open_run` open this run. The run that `mlflow run` opened for the command stays empty, and says why.

    It cannot be deleted: `mlflow run` sets its state at the end, and fails if it cannot.
    """
    launched = os.environ.get("MLFLOW_RUN_ID")
    if launched is not None and launched != run.info.run_id:
        client, text = connect(), f"Empty: this command continued the run {run.info.run_id} ({run.info.run_name})."
        with told(f"describe the run {launched}"):
            client.set_tag(launched, MLFLOW_RUN_NAME, f"resume {run.info.run_name}")
            client.set_tag(launched, MLFLOW_RUN_NOTE, text)
            client.set_tag(launched, "mlflow_ft.resumes", run.info.run_id)
    os.environ["MLFLOW_RUN_ID"] = run.info.run_id
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        if launched is not None:
            os.environ["MLFLOW_RUN_ID"] = launched
