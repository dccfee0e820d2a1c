"""Runs, logged models and versions that exist once, also if the answer to the request that created them was lost.

Each is looked up before it is created a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.entities.model_registry import ModelVersion

from mlflow_ft.hashes import file_hash
from mlflow_ft.manifest import MANIFEST
from mlflow_ft.tracking.environ import without_repeats
from mlflow_ft.tracking.server import every

REQUEST = "mlflow.mlflow_ft.request"
"""A run's tag with the id of the request that created it."""
CONTENT = "mlflow_ft.content"
"""A logged model's tag with a hash of its artifacts."""
MODEL_ID = "mlflow_ft.model_id"
"""A version's tag with its logged model, which SQL stores do not keep."""


class RunRequest:
    """A request for a new run, which may be made several times."""

    def __init__(self, client: MlflowClient) -> None:
        self._client, self._id, self._tried = client, uuid4().hex, False

    def make(self, create: Callable[[Mapping[str, str]], Run], adopt: Callable[[Run], Run] = lambda run: run) -> Run:
        """`create` the run with these tags, or `adopt` the one that an earlier attempt created."""
        if self._tried and (earlier := self._earlier()):
            return adopt(earlier)
        self._tried = True
        with without_repeats():
            return create({REQUEST: self._id})

    def _earlier(self) -> Run | None:
        experiments = every(lambda token: self._client.search_experiments(page_token=token))
        ids = [experiment.experiment_id for experiment in experiments]
        return next(iter(self._client.search_runs(ids, f"tags.`{REQUEST}` = '{self._id}'")), None)


def nested_run(client: MlflowClient, experiment_id: str, request: RunRequest, *, tags: Mapping[str, str]) -> str:
    """The id of a run with these tags, which another process opens."""
    run = request.make(lambda own: client.create_run(experiment_id, tags={**tags, **own}))
    return str(run.info.run_id)


def logged_model(
    client: MlflowClient,
    *,
    experiment_id: str,
    run_id: str,
    name: str,
    artifacts: Mapping[str, Path],
    params: Mapping[str, str],
    model_type: str,
) -> LoggedModel:
    """A logged model of the run with this name and these artifacts, new or from an earlier attempt to log it.

    One with the same name and other artifacts is deleted.
    """
    content = _content(artifacts)
    condition = f"source_run_id = '{run_id}' AND name = '{name}'"
    same = None
    for model in list(
        every(lambda token: client.search_logged_models([experiment_id], filter_string=condition, page_token=token))
    ):
        if same is None and model.tags.get(CONTENT) == content:
            same = model
        else:
            client.delete_logged_model(model.model_id)
    if same is not None:
        return same
    with without_repeats():
        return client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            params=dict(params),
            tags={CONTENT: content},
            model_type=model_type,
        )


def output(client: MlflowClient, *, run_id: str, model_id: str, step: int) -> None:
    """Make the model an output of the run, unless it is one."""
    outputs = client.get_run(run_id).outputs
    if model_id not in {model.model_id for model in (outputs.model_outputs if outputs else ())}:
        with without_repeats():
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=step)])


def version(
    client: MlflowClient, *, name: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str | None
) -> ModelVersion:
    """The version of a registered model that was made from the logged model, new or from an earlier attempt."""
    for known in client.search_model_versions(f"name = '{_quoted(name)}' AND run_id = '{run_id}'"):
        if known.tags.get(MODEL_ID) == model_id:
            return known
    with without_repeats():
        return client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={**tags, MODEL_ID: model_id},
            description=description,
        )


def _quoted(name: str) -> str:
    return name.replace("'", "\\'")


def _content(artifacts: Mapping[str, Path]) -> str:
    """A hash of files and folders; that of a folder with a manifest is the hash of its manifest."""
    hashes = {name: _hashes(path) for name, path in artifacts.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _hashes(path: Path) -> Mapping[str, str] | str:
    if path.is_file():
        return file_hash(path)
    if (path / MANIFEST).is_file():
        return file_hash(path / MANIFEST)
    return {file.relative_to(path).as_posix(): file_hash(file) for file in sorted(path.rglob("*")) if file.is_file()}
