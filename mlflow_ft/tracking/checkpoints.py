"""Checkpoints in a run's artifacts, so that the run can be resumed on a machine that has nothing but the store.

checkpoints/step-000120.json       the checkpoint's manifest, with the names of its files, written last
checkpoints/files/SHA256.SUFFIX    each file under its own hash: what did not change is not uploaded again
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ft.errors import FineTuneError
from mlflow_ft.manifest import MANIFEST, verify_manifest
from mlflow_ft.tracking.server import answers, connect, told

PLACE = "checkpoints"
FILES = f"{PLACE}/files"
log = logging.getLogger(__name__)


class CheckpointUploads:
    """Uploads checkpoints in a thread; of those that wait only the newest is uploaded.

    `flush` waits until the metrics so far are delivered and returns whether they are: a checkpoint in the store must
    not be ahead of the curves there.
    """

    def __init__(self, tracking_uri: str, run_id: str, flush: Callable[[], bool]) -> None:
        self._client, self._run_id, self._flush = MlflowClient(tracking_uri), run_id, flush
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-ft-upload")
        self._lock = threading.Lock()
        self._waiting: tuple[Path, Path | None] | None = None

    def put(self, folder: Path, *, beside: Path | None = None) -> None:
        """Upload this checkpoint when the one before it is uploaded, and `beside`, if that is not in the store yet."""
        with self._lock:
            self._waiting = folder, beside
        self._thread.submit(self._send)

    def close(self) -> None:
        """Wait for the upload."""
        self._thread.shutdown()

    def _send(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        folder, beside = waiting
        try:
            if not (answers(self._client.tracking_uri) and self._flush()):
                log.warning("%s: not uploaded, because metrics could not be delivered", folder.name)
                return
            upload(self._client, self._run_id, folder, beside=beside)
        except (MlflowException, OSError, FineTuneError) as error:  # the next one may succeed
            log.warning("%s: the checkpoint could not be uploaded: %s", folder.name, error)


def upload(client: MlflowClient, run_id: str, folder: Path, *, beside: Path | None = None) -> None:
    """Upload a checkpoint, and `beside` where the store does not have it; then remove all others.

    Raises:
        MlflowException, OSError: the store does not accept it.
    """
    kept = {}
    if beside and beside != folder:
        there = f"{beside.name}.json" in _names(client, run_id, PLACE)
        kept[beside.name] = _manifest(beside) if there else _upload(client, run_id, beside)
    kept[folder.name] = _upload(client, run_id, folder)
    _remove_others(client, run_id, kept)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _upload(client: MlflowClient, run_id: str, folder: Path) -> dict[str, Any]:
    """Upload the files that the store does not have, then the manifest, which is returned."""
    manifest = _manifest(folder)
    present = _names(client, run_id, FILES)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".upload-") as scratch:
        for name, about in manifest["files"].items():
            stored = _stored(name, about["sha256"])
            if stored not in present:
                _linked(folder / name, Path(scratch, stored))
                client.log_artifact(run_id, str(Path(scratch, stored)), FILES)
                Path(scratch, stored).unlink()
        described = Path(scratch, f"{folder.name}.json")
        described.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        client.log_artifact(run_id, str(described), PLACE)
    return manifest


def _stored(name: str, sha256: str) -> str:
    return f"{sha256}{Path(name).suffix}"


def _linked(file: Path, place: Path) -> None:
    """The file under another name, without a copy where the disk allows it."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _names(client: MlflowClient, run_id: str, path: str) -> set[str]:
    """The names of the files in a folder of the run's artifacts."""
    return {Path(entry.path).name for entry in client.list_artifacts(run_id, path) if not entry.is_dir}


def _remove_others(client: MlflowClient, run_id: str, kept: Mapping[str, Any]) -> None:
    """Remove the other checkpoints and the files that only they need; a store that cannot delete keeps them.

    `kept` are the manifests of those that stay, by name.
    """
    files = [entry for manifest in kept.values() for entry in manifest["files"].items()]
    needed = {_stored(name, about["sha256"]) for name, about in files}
    old = [f"{PLACE}/{name}" for name in _names(client, run_id, PLACE) if name.removesuffix(".json") not in kept]
    old += [f"{FILES}/{name}" for name in _names(client, run_id, FILES) - needed]
    uri = client.get_run(run_id).info.artifact_uri
    repository = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    for path in old:
        try:
            repository.delete_artifacts(path)
        except Exception as error:  # whatever the store's library raises, old checkpoints only take space
            log.debug("%s of run %s could not be removed: %s", path, run_id, error)


def fetch(
    run_id: str, into: Path, say: Callable[[str], None], *, after: int = 0, before: float = math.inf
) -> Path | None:
    """Download the newest complete checkpoint of a run into `into/step-N`; None if there is none between two steps.

    `say` gets a sentence about each that is skipped.

    Raises:
        TrackingError: the server does not answer.
    """
    client = connect()
    with told(f"list the checkpoints of run {run_id}"):
        names = {_step(name): name for name in _names(client, run_id, PLACE)}
    for step in sorted(names, reverse=True):
        name = names[step]
        if step >= before:
            continue
        if step <= after:
            break
        target = into / name.removesuffix(".json")
        try:
            _download(client, run_id, name, target)
            verify_manifest(target)
        except (MlflowException, OSError, ValueError, KeyError, FineTuneError) as error:
            say(f"{target.name}: the checkpoint in the store is incomplete and is skipped: {error}")
            shutil.rmtree(target, ignore_errors=True)
        else:
            return target
    return None


def _step(name: str) -> int:
    digits = name.removesuffix(".json").rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _download(client: MlflowClient, run_id: str, name: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    described = Path(client.download_artifacts(run_id, f"{PLACE}/{name}", str(target)))
    manifest = json.loads(described.read_text(encoding="utf-8"))
    for file, about in manifest["files"].items():
        stored = _stored(file, about["sha256"])
        Path(client.download_artifacts(run_id, f"{FILES}/{stored}", str(target))).rename(target / file)
    described.unlink()
    shutil.rmtree(target / PLACE, ignore_errors=True)
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
