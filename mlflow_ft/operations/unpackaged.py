"""Reopen a run that was trained but not packaged: find its weights, rows and settings again."""

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
    """A run whose training is complete on disk."""

    run: Run
    config: Config
    folder: Path
    moment: datetime
    """The time that the chat template got."""
    training: Mapping[str, Any]
    """The recorded result of the training; see `stages.train`."""


def find(run_id: str, registry: Registry) -> Unpackaged:
    """Find a run's configuration and its folder on this machine.

    Raises:
        TrackingError: there is no such run. ConfigError: it has registered its models already, or was not made by
        `train`. ModelError: its training did not finish, or its files are not on this machine. RefusedError: its model
        was refused.
    """
    from mlflow_ft.tracking import Store, unfinished

    run = unfinished.find_run(run_id)
    config = recorded_run.config(Store.connect(), run_id, registry)
    _check_open(run)
    folder = Path(run.data.tags.get(FOLDER) or config.run.output_dir.expanduser().resolve() / run_id)
    training = done.result(folder / "train")
    if training is None:
        reason = "is not on this machine" if not folder.is_dir() else "has no finished training"
        raise ModelError(
            f"run {run_id} cannot be packaged: its folder {folder} {reason}",
            hint="run this on the machine that has the folder" if not folder.is_dir() else "train again",
        )
    return Unpackaged(run=run, config=config, folder=folder, moment=recorded_run.moment(run), training=training)


def _check_open(run: Run) -> None:
    from mlflow_ft.tracking import unfinished

    if refused := run.data.tags.get(worse.REFUSED):
        raise RefusedError(
            f"run {run.info.run_id} was refused ({refused}): {run.data.tags.get(worse.TAG, '')}",
            hint="packaging it again does not change that",
        )
    if run.info.status != "FINISHED":
        return
    names = [f"{version.name} version {version.version}" for version in unfinished.versions_of(run)]
    raise ConfigError(
        f"run {run.info.run_id} is FINISHED; it registered {' and '.join(names) or 'nothing'}",
        hint="there is nothing left to package",
    )


def reopen(earlier: Unpackaged, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress) -> Job:
    """Reopen the folder and the journal.

    Raises:
        TrackingError: another process is using the run.
    """
    run.begin("package")
    job = start.open_job(earlier.config, plugins, registry, run, progress, folder=earlier.folder)
    progress.say(f"run {run.run_id}: trained for {earlier.training['metrics'].get('train/steps', 0):.0f} steps")
    return job


def clear(earlier: Unpackaged, progress: Progress) -> None:
    """Remove what an earlier attempt to package left in MLflow and on disk.

    Raises:
        TrackingError: one of its versions has an alias that the run did not set.
    """
    from mlflow_ft.tracking import unfinished

    if removed := unfinished.remove(earlier.run, alias=earlier.config.registry.alias):
        progress.say(f"removed what an earlier attempt left: {', '.join(removed)}")
    shutil.rmtree(earlier.folder / "package", ignore_errors=True)


def trained(job: Job, earlier: Unpackaged) -> Trained:
    """The trained weights on disk, on their base, which is found again.

    Raises:
        ModelError: the base is not the one that was trained.
    """
    recorded: Mapping[str, str] = earlier.training["base"]
    base = replace(init_from.find(job.config, job.progress), task=job.task)
    for name in ("revision", "start_uri"):
        _check_same(base, name, recorded.get(name, ""))
    return Trained(
        folder=earlier.folder / "train",
        base=base,
        metrics=earlier.training["metrics"],
        findings=tuple(earlier.training.get("findings") or ()),
    )


def _check_same(base: BaseModel, name: str, recorded: str) -> None:
    current = str(getattr(base, name))
    if current != recorded:
        raise ModelError(
            f"the base model {base.name} is not the one that was trained: its {name} is {current}, but was {recorded}",
            hint="restore the model, or train again",
        )


def data(job: Job, earlier: Unpackaged, base: BaseModel) -> Data:
    """The rows of the run, prepared again and compared with the recorded fingerprint; nothing is logged.

    Raises:
        DataError: the rows have changed.
    """
    from mlflow_ft.engine.tokens import tokenizers

    tokenizer = tokenizers.load(job.config, base)
    rows = dataset.prepare(
        job.config, tokenizer, plugins=job.plugins, registry=job.registry, progress=job.progress
    ).data
    recorded = earlier.run.data.tags.get("mlflow_ft.data_fingerprint")
    if rows.fingerprint != recorded:
        raise DataError(
            f"the rows, or how they are prepared, have changed: their fingerprint is {rows.fingerprint}, but was "
            f"{recorded}",
            hint="restore the files, the chat template, mlflow-ft and its plugins, or train again",
        )
    sets = guards.prepare(job.config, rows, plugins=job.plugins, registry=job.registry, progress=job.progress)
    return replace(rows, guards=sets)


@contextmanager
def naming_weights(job: Job, trained: Trained) -> Iterator[None]:
    """If a stage after the training fails for a reason other than a refusal, say where the weights are."""
    try:
        yield
    except RefusedError:
        raise
    except BaseException as error:  # including signals; it is raised again
        weights = trained.adapter or trained.model
        note = f"the trained weights are in {weights}; to continue after a fix: mlflow-ft package {job.run.run_id}"
        if isinstance(error, FineTuneError):
            error.hint = "\n  ".join(filter(None, (error.hint, note)))
        else:
            error.add_note(note)
        raise
