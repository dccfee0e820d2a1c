"""What MLflow is asked to record (tags, params, files, data sets), as data: now, or later from the run's folder.

    outbox/calls.jsonl     the calls that the server has not accepted, in order; see `journal`
    outbox/files/N/NAME    copies of the files that they name, unless those are in the run's folder

Each call may be made twice: the second one changes nothing.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature

from mlflow_ft import disk
from mlflow_ft.tracking import models
from mlflow_ft.tracking.journal import Entry, Journal
from mlflow_ft.tracking.models import ModelToLog

FOLDER = "outbox"
BATCH = 100
"""Most tags or params that one request takes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where calls are made: a run on a server, and its folder, which relative paths are in."""

    client: MlflowClient
    run_id: str
    experiment_id: str
    folder: Path


# --- calls as data


def tags(values: Mapping[str, str]) -> Entry:
    return {"call": "tags", "values": dict(values)}


def params(values: Mapping[str, str]) -> Entry:
    return {"call": "params", "values": dict(values)}


def text(content: str, path: str) -> Entry:
    """A text as the artifact `path`."""
    return {"call": "text", "content": content, "path": path}


def file(path: Path, folder: str) -> Entry:
    """A file or a whole folder into the artifacts under `folder`."""
    return {"call": "file", "file": str(path.absolute()), "folder": folder}


def inputs(datasets: Sequence[DatasetInput]) -> Entry:
    fields = ("name", "digest", "source_type", "source", "schema", "profile")
    return {
        "call": "inputs",
        "datasets": [
            {name: getattr(entry.dataset, name) for name in fields}
            | {"tags": {tag.key: tag.value for tag in entry.tags}}
            for entry in datasets
        ],
    }


def model(wanted: ModelToLog, metrics: Sequence[Entry]) -> Entry:
    """A model from code, and the metrics that will be linked to it; its artifacts are folders."""
    return {
        "call": "model",
        "name": wanted.name,
        "code": str(wanted.code),
        "artifacts": {name: str(path.absolute()) for name, path in wanted.artifacts.items()},
        "signature": wanted.signature.to_dict(),
        "pip_requirements": list(wanted.pip_requirements),
        "model_type": wanted.model_type,
        "metadata": dict(wanted.metadata),
        "model_config": dict(wanted.model_config),
        "step": wanted.step,
        "metrics": [dict(metric) for metric in metrics],
    }


# --- making them


def make(entry: Entry, place: Place) -> None:
    """Make a call; raises what MLflow raises."""
    CALLS[entry["call"]](entry, place)


def _tags(entry: Entry, place: Place) -> None:
    for batch in _batches([RunTag(key, value) for key, value in entry["values"].items()]):
        place.client.log_batch(place.run_id, tags=batch)


def _params(entry: Entry, place: Place) -> None:
    for batch in _batches([Param(key, value) for key, value in entry["values"].items()]):
        place.client.log_batch(place.run_id, params=batch)


def _text(entry: Entry, place: Place) -> None:
    place.client.log_text(place.run_id, entry["content"], entry["path"])


def _file(entry: Entry, place: Place) -> None:
    place.client.log_artifact(place.run_id, str(place.folder / entry["file"]), entry["folder"] or None)


def _inputs(entry: Entry, place: Place) -> None:
    datasets = [
        DatasetInput(
            dataset=Dataset(**{name: value for name, value in fields.items() if name != "tags"}),
            tags=[InputTag(key=key, value=value) for key, value in fields["tags"].items()],
        )
        for fields in entry["datasets"]
    ]
    place.client.log_inputs(place.run_id, datasets=datasets)


def _model(entry: Entry, place: Place) -> None:
    wanted = ModelToLog(
        name=entry["name"],
        code=Path(entry["code"]),
        artifacts={name: place.folder / path for name, path in entry["artifacts"].items()},
        signature=ModelSignature.from_dict(entry["signature"]),
        pip_requirements=entry["pip_requirements"],
        model_type=entry["model_type"],
        metadata=entry["metadata"],
        model_config=entry["model_config"],
        step=entry["step"],
    )
    model_id = models.log_model(place.client, wanted, run_id=place.run_id, experiment_id=place.experiment_id)
    metrics = [Metric(run_id=None, **{**metric, "model_id": model_id}) for metric in entry["metrics"]]
    place.client.log_batch(place.run_id, metrics=metrics)


CALLS: Mapping[str, Callable[[Entry, Place], None]] = {
    "tags": _tags,
    "params": _params,
    "text": _text,
    "file": _file,
    "inputs": _inputs,
    "model": _model,
}


def _batches(entities: Sequence[Any]) -> list[Sequence[Any]]:
    return [entities[start : start + BATCH] for start in range(0, len(entities), BATCH)]


# --- keeping them


class Outbox:
    """The calls of one run that wait for its server; a later process continues with them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.folder / FOLDER
        self._calls = Journal(self._folder / "calls.jsonl", self._make, background=False, batch=1)

    @property
    def pending(self) -> int:
        """Number of calls that wait."""
        return self._calls.pending

    def add(self, entry: Entry) -> None:
        """Keep a call, and copies of the files that it names.

        Raises:
            OSError: the disk is full or gone.
        """
        if entry["call"] == "file":
            entry = {**entry, "file": self._kept(Path(entry["file"]))}
        elif entry["call"] == "model":
            paths = {name: self._kept(Path(path), copy=True) for name, path in entry["artifacts"].items()}
            entry = {**entry, "artifacts": paths}
        self._calls.append(entry)

    def deliver(self) -> int:
        """Make the waiting calls in order, and return their number; raises what MLflow raises."""
        return self._calls.replay()

    def _kept(self, path: Path, *, copy: bool = False) -> str:
        """The path within the run's folder of a file or folder, which is copied there unless it is there to stay."""
        home = self._place.folder.absolute()
        if path.is_relative_to(home) and not copy:
            return path.relative_to(home).as_posix()
        files = self._folder / "files"
        number = 1 + max((int(known.name) for known in files.glob("*")), default=0)
        target = files / str(number) / path.name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
            disk.sync_folder(target)
        else:
            shutil.copyfile(path, target)
            disk.sync(target)
        disk.sync(target.parent)
        return target.absolute().relative_to(home).as_posix()

    def _make(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if any(not path.exists() for path in self._copies(entry)):  # delivered, but a crash came before the count
                continue
            try:
                make(entry, self._place)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                log.warning("skipping %s, which the tracking server refuses: %s", entry["call"], error)
            for path in self._copies(entry):
                shutil.rmtree(path.parent, ignore_errors=True)

    def _copies(self, entry: Entry) -> list[Path]:
        names = (entry.get("file"), *entry.get("artifacts", {}).values())
        return [self._place.folder / name for name in names if name and name.startswith(f"{FOLDER}/files/")]
