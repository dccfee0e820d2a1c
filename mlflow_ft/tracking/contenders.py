"""A registered version with all the evidence that its run recorded about it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_ft.candidacy import Contender
from mlflow_ft.errors import ModelError
from mlflow_ft.tracking.inputs import CONTEXT_KEY
from mlflow_ft.tracking.server import every, shown, told

ROWS_FILE = "eval/rows.json"
ANSWERS_FILE = "eval/answers.json"
QUALITY_FILE = "data/quality.json"
GATES_FILE = "gates.yaml"
CARD = "README.md"
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def find_version(client: MlflowClient, name: str, asked: str) -> ModelVersion:
    """A version by its number or by an alias.

    Raises:
        ModelError: the registry has no such model, version or alias. TrackingError: it does not answer.
    """
    with told(f"read {name} in the registry"):
        try:
            if asked.isdecimal():
                return client.get_model_version(name, asked)
            return client.get_model_version_by_alias(name, asked)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise
            of = f"version of {name!r} with the alias {asked!r}"
            of = f"version {asked} of {name!r}" if asked.isdecimal() else of
            raise ModelError(f"the registry has no {of}", hint=_there_are(client, name)) from error


def version_of(client: MlflowClient, uri: str) -> ModelVersion | None:
    """The version that `models:/NAME/3` names; None for any other URI.

    Raises:
        ModelError: the registry has no such version. TrackingError: it does not answer.
    """
    match = re.match(r"models:/([^/]+)/(\d+)", uri)
    return find_version(client, match[1], match[2]) if match else None


def find_model(client: MlflowClient, name: str) -> None:
    """Raise ModelError if the registry has no model of this name."""
    with told(f"read {name} in the registry"):
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise
            raise ModelError(f"the registry has no model {name!r}", hint=_there_are(client, name)) from error


def numbers(client: MlflowClient, name: str) -> set[int]:
    """The numbers of a model's versions."""
    quote = '"' if "'" in name else "'"
    condition = f"name={quote}{name}{quote}"
    with told(f"list the versions of {name}"):
        versions = every(lambda token: client.search_model_versions(condition, page_token=token))
        return {int(version.version) for version in versions}


def _there_are(client: MlflowClient, name: str) -> str:
    try:
        versions = client.search_model_versions(f"name='{name}'", max_results=20, order_by=["version_number DESC"])
        aliases = client.get_registered_model(name).aliases
    except MlflowException:
        return f"{shown(mlflow.get_tracking_uri())} has no registered model of this name"
    numbers = ", ".join(str(version.version) for version in reversed(versions)) or "none"
    return f"versions: {numbers}; aliases: {', '.join(sorted(aliases)) or 'none'}"


def contender(client: MlflowClient, version: ModelVersion, *, elsewhere: MlflowClient | None = None) -> Contender:
    """Everything recorded about a version. Unknown fields are empty; the gates decide what that means.

    The run is also looked up in `elsewhere`: the run of a copied version stays in the store that it came from.

    Raises:
        TrackingError: the server does not answer.
    """
    run_id = version.tags.get("mlflow_ft.run_id") or version.run_id or ""
    with told(f"read the records of {version.name} version {version.version}"):
        owner, run = client, _run(client, run_id)
        if run is None and elsewhere is not None:
            owner, run = elsewhere, _run(elsewhere, run_id)
        rows = (run and read(owner, run_id, ROWS_FILE)) or {}
        digest = rows.get("digest") or _digest(run)
        return Contender(
            name=version.name,
            version=int(version.version),
            run_id=run_id,
            model_id=version.tags.get("mlflow_ft.model_id", ""),
            tags=dict(version.tags),
            described=bool((version.description or "").strip()) or _has_card(client, version),
            status=run.info.status if run else "",
            ended_ms=run.info.end_time if run else None,
            params=dict(run.data.params) if run else {},
            metrics=dict(run.data.metrics) if run else {},
            quality=(run and read(owner, run_id, QUALITY_FILE)) or None,
            eval_digest=digest,
            guards=rows.get("guards") or {},
            rows=_rows(rows, "tuned"),
            base_rows=_rows(rows, "base"),
            answers=_answers((run and read(owner, run_id, ANSWERS_FILE)) or {}),
            base=rows.get("base_model") or (run.data.tags.get("mlflow_ft.base_model", "") if run else ""),
            aims=tuple(rows.get("aims", ())),
            digests=rows.get("digests") or {},
            measured_by=rows.get("measured_by") or {},
            lower_is_better=rows.get("lower_is_better") or {},
        )


def _rows(kept: Mapping[str, Any], of: str) -> dict[str, tuple[float | None, ...]]:
    return {name: tuple(values) for name, values in kept.get("scores", {}).get(of, {}).items()}


def _answers(table: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """The texts of a kept table of answers, in the order of the held-out rows."""
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table.get("data", ())]
    rows.sort(key=lambda row: row.get("row", 0))  # early versions kept that order and did not number them
    return tuple({name: str(row.get(name) or "") for name in ("prompt", "expected", "base", "tuned")} for row in rows)


def read(client: MlflowClient, run_id: str, path: str) -> Any:
    """The content of a JSON artifact, or the text of any other; None if the run has no such artifact."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
            return json.loads(text) if path.endswith(".json") else text
        except (MlflowException, OSError, ValueError):
            return None


def _run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code not in GONE:
            raise
        return None


def _digest(run: Run | None) -> str:
    for entry in run.inputs.dataset_inputs if run and run.inputs else ():
        if any(tag.key == CONTEXT_KEY and tag.value == "eval" for tag in entry.tags):
            return str(entry.dataset.digest)
    return ""


def _has_card(client: MlflowClient, version: ModelVersion) -> bool:
    model_id = version.tags.get("mlflow_ft.model_id")
    if not model_id:
        return False
    try:
        places = [None, "artifacts/model"]
        return any(
            Path(file.path).name == CARD
            for place in places
            for file in client.list_logged_model_artifacts(model_id, place)
        )
    except MlflowException:
        return False
