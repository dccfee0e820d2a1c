"""Copy a version's files, not a pointer to them, to another registered model or another registry.

MLflow's `copy_model_version` stores a pointer: once the original is deleted and garbage-collected, the copy downloads
an empty folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import Problem, RefusedError
from mlflow_ft.hashes import file_hash
from mlflow_ft.manifest import MANIFEST, verify_manifest, weights_digest
from mlflow_ft.tracking.faults import Fault, fault_of
from mlflow_ft.tracking.models import ensure_registered_model
from mlflow_ft.tracking.run import experiment_id
from mlflow_ft.tracking.server import told

EXPERIMENT = "copied models"
"""The experiment that holds the copies; a separate one, so that cleaning up a project's runs does not delete them."""
WEIGHTS = "artifacts/model"
LINEAGE = (
    "mlflow_ft.run_id",
    "mlflow_ft.method",
    "mlflow_ft.base_model",
    "mlflow_ft.base_revision",
    "mlflow_ft.data_digest",
    "mlflow_ft.data_fingerprint",
    "mlflow_ft.plugins",
    "mlflow_ft.form",
    "mlflow_ft.worse",
)
"""Tags that a copy keeps to record where it comes from. Decisions about the original version are not copied."""


def copy_version(source: MlflowClient, version: ModelVersion, *, to: str, client: MlflowClient) -> int:
    """Copy a version's files, verify them before and after, and register them as the next version of `to`.

    Raises:
        RefusedError: the files differ from those that were packaged, or changed on the way.
        ModelError: there is no manifest. TrackingError: a server does not answer.
    """
    what = f"copy {version.name} version {version.version} to {to}"
    with told(what), tempfile.TemporaryDirectory() as folder:
        model = download(source, version.name, int(version.version), Path(folder, "from"))
        verify_manifest(model / WEIGHTS)
        sent = _hashes(model)
        copied = client.create_logged_model(
            experiment_id(EXPERIMENT, client=client),
            name=to.translate(str.maketrans("/:.", "---")),
            model_type=version.tags.get("mlflow_ft.form", "copy"),
            tags={"mlflow_ft.copied_from": f"models:/{version.name}/{version.version}"},
        )
        try:
            client.log_model_artifacts(copied.model_id, str(model))
            _arrived(client, copied.artifact_location, sent, Path(folder, "to"))
        except BaseException:
            client.finalize_logged_model(copied.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(copied.model_id, LoggedModelStatus.READY)
        ensure_registered_model(client, to)
        created = client.create_model_version(
            to,
            source=copied.artifact_location,
            tags=_tags(version, copied.model_id),
            model_id=copied.model_id if client is source else None,  # MLflow looks it up in the current store
            description=version.description,
        )
    return int(created.version)


def _tags(version: ModelVersion, model_id: str) -> dict[str, str]:
    kept = {key: value for key, value in version.tags.items() if key in LINEAGE or key.startswith("mlflow_ft.parity.")}
    return kept | {
        "mlflow_ft.copied_from": f"models:/{version.name}/{version.version}",
        "mlflow_ft.copied_from_model_id": version.tags.get("mlflow_ft.model_id", ""),
        "mlflow_ft.model_id": model_id,
    }


def _arrived(client: MlflowClient, location: str, sent: Mapping[str, str], folder: Path) -> None:
    """Download the copy and compare every file with what was sent."""
    received = _hashes(_fetch(client, location, folder))
    different = sorted(name for name in sent.keys() | received.keys() if sent.get(name) != received.get(name))
    if different:
        raise RefusedError(
            "the copy differs from the original; it is not registered",
            problems=[Problem(place=name, message="is not what was sent") for name in different],
        )


def check_files(client: MlflowClient, name: str, version: int) -> str:
    """The place of a version's files.

    Raises:
        RefusedError: they are gone; MLflow keeps a version whose model was deleted. TrackingError: the store does not
        answer.
    """
    with told(f"list the files of {name} version {version}"):
        location = str(client.get_model_version_download_uri(name, str(version)))
        files = mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=client.tracking_uri)
    if "MLmodel" not in {Path(file.path).name for file in files}:
        raise RefusedError(
            f"{name} version {version} has no files: its model was deleted",
            hint="nothing was moved or copied; choose another version",
        )
    return location


def download(client: MlflowClient, name: str, version: int, folder: Path) -> Path:
    """Download the files of a version to a folder inside `folder`.

    Raises:
        RefusedError: they are gone. TrackingError: the store does not answer.
    """
    with told(f"download {name} version {version}"):
        return _fetch(client, check_files(client, name, version), folder)


def weights(client: MlflowClient, name: str, version: int) -> str:
    """The digest of a version's weights, by its manifest; "" if it has none."""
    with told(f"read the manifest of {name} version {version}"), tempfile.TemporaryDirectory() as folder:
        location = client.get_model_version_download_uri(name, str(version))
        try:
            file = _fetch(client, f"{location.rstrip('/')}/{WEIGHTS}/{MANIFEST}", Path(folder, WEIGHTS))
        except (MlflowException, OSError) as error:
            if fault_of(error) is not Fault.OTHER:
                raise
            return ""
        return weights_digest(file.parent)


def _fetch(client: MlflowClient, location: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    downloaded = mlflow.artifacts.download_artifacts(
        artifact_uri=location, dst_path=str(folder), tracking_uri=client.tracking_uri, registry_uri=client.tracking_uri
    )
    return Path(downloaded)


def _hashes(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}
