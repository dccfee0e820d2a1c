"""A run that was trained but not packaged: its weights, its rows and its settings, found again to go on with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, DataError, FineTuneError, ModelError, RefusedError
from mlflow_ft.job import Job
from mlflow_ft.operations import recorded_run
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import dataset, guards
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import done, init_from, start, worse
from mlflow_ft.values import BaseModel, Data, Trained

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import ActiveRun

FOLDER = "mlflow_ft.folder"
"""The tag of a run that says where its files are."""


@dataclass(frozen=True, kw_only=True)
class Unpackaged:
    """A run whose training is complete on the disk."""

    run: Run
    config: Config
    folder: Path
    moment: datetime
    """What the chat template was told in place of the time."""
    training: Mapping[str, Any]
    """What the training noted at its end: see `stages.train`."""


def find(run_id: str, registry: Registry) -> Unpackaged:
    """Find a run's configuration and its folder on this machine.

    Raises:
        TrackingError: there is no such run. ConfigError: it has registered its models already, or was not made by
        `train`. ModelError: it was not trained to its end, or its files are not on this machine. RefusedError: it was
        packaged, and refused by evidence.
    """
    from mlflow_ft.tracking import Store, unfinished

    run = unfinished.find_run(run_id)
    config = recorded_run.config(Store.connect(), run_id, registry)
    _check_open(run)
    folder = Path(run.data.tags.get(FOLDER) or config.run.output_dir.expanduser().resolve() / run_id)
    training = done.result(folder / "train")
    if training is None:
        there = "is not on this machine" if not folder.is_dir() else "holds no finished training"
        raise ModelError(
            f"run {run_id} cannot be packaged: its folder {folder} {there}",
            hint="call it on the machine that has the folder" if not folder.is_dir() else "train again",
        )
    return Unpackaged(run=run, config=config, folder=folder, moment=recorded_run.moment(run), training=training)


def _check_open(run: Run) -> None:
    from mlflow_ft.tracking import unfinished

    if refused := run.data.tags.get(worse.REFUSED):
        raise RefusedError(
            f"run {run.info.run_id} was refused ({refused}): {run.data.tags.get(worse.TAG, '')}",
            hint="packaging it again would not change that",
        )
    if run.info.status != "FINISHED":
        return
    names = [f"{version.name} version {version.version}" for version in unfinished.versions_of(run)]
    raise ConfigError(
        f"run {run.info.run_id} is FINISHED; it registered {' and '.join(names) or 'nothing'}",
        hint="there is nothing left to package",
    )


def reopen(left: Unpackaged, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress) -> Job:
    """Open the folder and the journal again.

    Raises:
        TrackingError: another process works on the run.
    """
    run.begin("package")
    made = start.opened(left.config, plugins, registry, run, progress, folder=left.folder)
    progress.say(f"run {run.run_id}: trained, {left.training['metrics'].get('train/steps', 0):.0f} steps")
    return made


def clear(left: Unpackaged, progress: Progress) -> None:
    """Remove what an earlier attempt left of the packaging, in MLflow and on the disk.

    Raises:
        TrackingError: one of its versions has an alias that the run did not give.
    """
    from mlflow_ft.tracking import unfinished

    if removed := unfinished.remove(left.run, alias=left.config.registry.alias):
        progress.say(f"of an earlier attempt, removed: {', '.join(removed)}")
    shutil.rmtree(left.folder / "package", ignore_errors=True)


def trained(job: Job, left: Unpackaged) -> Trained:
    """What the training left on disk, on its base, which is found again.

    Raises:
        ModelError: the base is not the one that was trained.
    """
    noted: Mapping[str, str] = left.training["base"]
    base = replace(init_from.find(job.config, job.progress), task=job.task)
    for name in ("revision", "start_uri"):
        _check_same(base, name, noted.get(name, ""))
    return Trained(
        folder=left.folder / "train",
        base=base,
        metrics=left.training["metrics"],
        findings=tuple(left.training.get("findings") or ()),
    )


def _check_same(base: BaseModel, name: str, noted: str) -> None:
    now = str(getattr(base, name))
    if now != noted:
        raise ModelError(
            f"the base model {base.name} is not the one that was trained: its {name} is {now}, and was {noted}",
            hint="put the model back as it was, or train again",
        )


def data(job: Job, left: Unpackaged, base: BaseModel) -> Data:
    """The rows of the run, prepared as it did and held to the fingerprint that it recorded; nothing is logged.

    Raises:
        DataError: they are not what they were.
    """
    from mlflow_ft.engine.tokens import tokenizers

    tokenizer = tokenizers.load(job.config, base)
    rows = dataset.prepare(
        job.config, tokenizer, plugins=job.plugins, registry=job.registry, progress=job.progress
    ).data
    noted = left.run.data.tags.get("mlflow_ft.data_fingerprint")
    if rows.fingerprint != noted:
        raise DataError(
            f"the rows, or how they are prepared, are not what they were: their fingerprint is {rows.fingerprint}, and "
            f"was {noted}",
            hint="put the files, the chat template, mlflow-ft and its plugins back as they were, or train again",
        )
    sets = guards.prepare(job.config, rows, plugins=job.plugins, registry=job.registry, progress=job.progress)
    return replace(rows, guards=sets)


@contextmanager
def kept(job: Job, trained: Trained) -> Iterator[None]:
    """Where something after the training fails that is no verdict on the model, say where the weights are."""
    try:
        yield
    except RefusedError:
        raise
    except BaseException as error:  # a signal, too; it is raised again
        weights = trained.adapter or trained.model
        told = f"the trained weights are kept in {weights}; when the cause is gone: mlflow-ft package {job.run.run_id}"
        if isinstance(error, FineTuneError):
            error.hint = "\n  ".join(filter(None, (error.hint, told)))
        else:
            error.add_note(told)
        raise
