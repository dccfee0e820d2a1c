"""Whether a run can write to the tracking store and the registry, without leaving anything there.

store             what is tried
SQLite            a table is created in a transaction that is rolled back
other databases   an update that matches no row, in a transaction that is rolled back
a server          a tag of the experiment is set and deleted; a run and a model are requested with an invalid field: the
                  server answers 400 to a user who may create them, and 401 or 403 to any other
a folder          a file without a name, which vanishes when it is closed
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from mlflow.exceptions import MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy.exc import SQLAlchemyError

from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import TrackingError, brief
from mlflow_ft.tracking import run_place
from mlflow_ft.tracking.asking import asked
from mlflow_ft.tracking.databases import DATABASES, check_database, check_folder, check_sqlite, local_folder
from mlflow_ft.tracking.environ import overriding
from mlflow_ft.tracking.run import AT_ONCE
from mlflow_ft.tracking.run_place import RunPlace
from mlflow_ft.tracking.server import (
    PROBE_SECONDS,
    REGISTRY,
    TRACKING,
    Service,
    check_server,
    is_http,
    shown,
    sqlite_file,
)

REFUSALS = (401, 403, 405)


def check_tracking(settings: RunSection, run_id: str | None = None) -> tuple[str, RunPlace]:
    """Check that a run can be written to the tracking store: a new one, or `run_id`, if it is continued.

    Returns:
        A description of the store, and where the run will be in it.

    Raises:
        TrackingError: it does not answer, is not MLflow's, or cannot be written; or the experiment was deleted.
    """
    uri = mlflow.get_tracking_uri()
    if not is_http(uri):
        detail = _local(uri, TRACKING, table="experiments")
        return detail, run_place.find(settings, run_id)
    check_server(uri)
    refuse(_request(uri, "GET", "experiments/search?max_results=1"), uri, "may not read experiments", TRACKING)
    with overriding(os.environ, AT_ONCE):
        place = run_place.find(settings, run_id)
    if place.experiment_id is None:
        refuse(_request(uri, "POST", "experiments/create"), uri, "may not create the experiment", TRACKING)
    else:
        _write_tag(uri, place.experiment_id)
        _request_run(uri, place.experiment_id)
    return f"{shown(uri)} accepts runs", place


def check_registry(model_name: str | None) -> str:
    """Check that versions can be registered; `model_name` is the registered model, if its name is known already.

    Returns:
        A description of the registry.

    Raises:
        TrackingError: as for `check_tracking`.
    """
    uri = mlflow.get_registry_uri()
    same = uri == mlflow.get_tracking_uri()
    service = TRACKING if same else REGISTRY
    if is_http(uri):
        check_server(uri, service=service)
        answer = _request(uri, "GET", "registered-models/search?max_results=1")
        refuse(answer, uri, "may not read registered models", service)
        if not answer.ok:
            raise TrackingError(
                f"{shown(uri)} has no model registry ({answer.status_code}: {_message(answer)})",
                hint=f"set {REGISTRY.variable} to a server that has one",
            )
        refuse(_request(uri, "POST", "registered-models/create"), uri, "may not register models", service)
        if model_name and _request(uri, "GET", f"registered-models/get?name={quote(model_name)}").ok:
            version = _request(uri, "POST", "model-versions/create", {"name": model_name})
            refuse(version, uri, f"may not add versions to {model_name}", service)
        return "on the tracking server" if same else f"{shown(uri)} accepts models"
    return "in the tracking store" if same else _local(uri, service, table="registered_models")


def has_own_registry() -> bool:
    """Whether the registry is not in the tracking store (MLFLOW_REGISTRY_URI)."""
    return str(mlflow.get_registry_uri()) != mlflow.get_tracking_uri()


def _local(uri: str, service: Service, *, table: str) -> str:
    """Check a store that this process opens itself."""
    if uri == "databricks" or uri.startswith("databricks"):
        return f"{uri} (not tried)"
    if file := sqlite_file(uri):
        check_server(uri, service=service, create=False)
        return check_sqlite(file.absolute(), uri, service)
    if uri.startswith(DATABASES):
        return check_database(uri, service, table=table)
    if folder := local_folder(uri):
        hint = f"set {service.variable} to sqlite:///mlflow.db; `mlflow migrate-filestore` copies earlier runs"
        if not MLFLOW_ALLOW_FILE_STORE.get():
            raise TrackingError(f"{uri} is a folder, and MLflow no longer keeps runs in folders", hint=hint)
        check_folder(folder, f"the store {folder}", hint=hint)
        return str(folder)
    try:
        MlflowClient(uri, registry_uri=uri).search_registered_models(max_results=1)
    except UnsupportedModelRegistryStoreURIException as error:
        raise TrackingError(
            f"{shown(uri)}: MLflow has no store of the kind {uri.partition(':')[0]}",
            hint=f"set {service.variable} to http://HOST:PORT, or to sqlite:///mlflow.db",
        ) from error
    except (MlflowException, OSError, SQLAlchemyError) as error:
        hint = f"sqlite:///{uri.removeprefix('sqlite://')}" if uri.startswith("sqlite://") else "sqlite:///mlflow.db"
        raise TrackingError(
            f"{shown(uri)} cannot be opened: {brief(error)}", hint=f"set {service.variable} to {hint}"
        ) from error
    return shown(uri)


# --- servers


def refuse(answer: requests.Response, uri: str, what: str, service: Service) -> None:
    """Raise TrackingError if a server's answer means that this user may not do what was asked."""
    if answer.status_code not in REFUSALS:
        return
    user = "the user of this process" if answer.status_code != 401 else "no user, or one with a wrong password,"
    raise TrackingError(
        f"{shown(uri)}: {user} {what} ({answer.status_code}: {_message(answer)})",
        hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user "
        f"who may, or {service.variable} to another server",
    )


def _write_tag(uri: str, experiment_id: str) -> None:
    """Set a tag of the experiment and delete it, if the server can delete tags."""
    tag = {"experiment_id": experiment_id, "key": f"mlflow_ft.preflight.{uuid.uuid4().hex}"}
    answer = _request(uri, "POST", "experiments/delete-experiment-tag", tag)
    refuse(answer, uri, "may not write to the experiment", TRACKING)
    if "RESOURCE_DOES_NOT_EXIST" not in answer.text:
        return  # an older server, on which the tag would stay
    answer = _request(uri, "POST", "experiments/set-experiment-tag", {**tag, "value": "deleted at once"})
    refuse(answer, uri, "may not write to the experiment", TRACKING)
    if not answer.ok:
        raise TrackingError(
            f"{shown(uri)} answers, but cannot write ({answer.status_code}: {_message(answer)})",
            hint="make the server's database writable; the server's log says more",
        )
    _request(uri, "POST", "experiments/delete-experiment-tag", tag)


def _request_run(uri: str, experiment_id: str) -> None:
    """Ask for a run that starts at no time: refused as invalid to a user who may create runs."""
    answer = _request(uri, "POST", "runs/create", {"experiment_id": experiment_id, "start_time": "never"})
    refuse(answer, uri, "may not create runs in the experiment", TRACKING)
    if answer.ok:  # a server that is not strict
        _request(uri, "POST", "runs/delete", {"run_id": answer.json()["run"]["info"]["run_id"]})


def _request(uri: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> requests.Response:
    try:
        about = {} if method == "GET" else {"json": body or {}}
        return asked(uri, f"/api/2.0/mlflow/{path}", timeout=PROBE_SECONDS, method=method, **about)
    except (MlflowException, requests.RequestException) as error:
        raise TrackingError(
            f"{shown(uri)} does not answer {path.partition('?')[0]}: {brief(error)}",
            hint="check the server, and the proxy in front of it",
        ) from error


def _message(answer: requests.Response) -> str:
    """What a server said, in one line."""
    try:
        said = answer.json().get("message", "")
    except (ValueError, AttributeError):
        said = answer.text
    lines = str(said).strip().splitlines()
    return lines[0][:200] if lines else answer.reason or "no reason given"
