"""The run that is reproduced: everything that is needed to train it again and to compare the results.

All of it is read before the training, except weights that turn out to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, DataError
from mlflow_ft.job import Job
from mlflow_ft.operations import changes, recorded_run
from mlflow_ft.operations.changes import Change, Facts
from mlflow_ft.registry import Registry
from mlflow_ft.stages.train import WEIGHTS_FILE

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking.curves import Curves

COMPARED = ("train/", "eval/")
"""Prefixes of the metrics that are compared."""
ENDED = "train/steps"
"""A metric that is logged when the training has ended."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """A finished training, as it was recorded."""

    run: Run
    config: Config
    """With the exact revision and versions that were used, and the settings of the new run."""
    moment: datetime
    facts: Facts
    curves: Curves
    weights: Mapping[str, str] | None
    """The sha256 of every trained weight file; None for a run of an earlier version, which did not record them."""

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def commit(self) -> str:
        """The commit of the repository in which it was started; "" if there was none."""
        return str(self.run.data.tags.get("mlflow_ft.git_commit", ""))

    @property
    def accepted(self) -> str:
        """The changes that were accepted when it was resumed: its steps were not all trained in one way."""
        return str(self.run.data.tags.get("mlflow_ft.accepted_changes", ""))


def find(run_id: str, registry: Registry, *, output_dir: Path | None = None) -> Original:
    """Read the record of a run. The new run's folder is in `output_dir`, else as in the original, from here.

    Raises:
        TrackingError: there is no such run. ConfigError: it was not made by `train`, or its training did not end.
    """
    from mlflow_ft.tracking import Store, unfinished

    run, store = unfinished.find_run(run_id), Store.connect()
    config = recorded_run.config(store, run_id, registry)
    if ENDED not in run.data.metrics:
        raise ConfigError(
            f"run {run_id} is {run.info.status} and its training has not ended: there is nothing to compare with",
            hint="reproduce a run that was trained to its end",
        )
    settings = {
        "name": f"{run.info.run_name}-reproduced",
        "experiment": store.experiment_name(run),
        "output_dir": Path.cwd() / (output_dir or config.run.output_dir).expanduser(),
    }
    training = config.training.model_copy(update={"upload_checkpoints": False, "log_checkpoints": False})
    config = config.model_copy(update={"run": config.run.model_copy(update=settings), "training": training})
    return Original(
        run=run,
        config=recorded_run.pinned(config, run.data.tags),
        moment=recorded_run.moment(run),
        facts=changes.of_run(run.data.tags, config),
        curves=store.curves(run, prefixes=COMPARED),
        weights=store.read(run_id, WEIGHTS_FILE),
    )


def check_processes(original: Original) -> None:
    """Raise ConfigError if another number of processes trained: then the steps have other rows."""
    from mlflow_ft.engine import ranks
    from mlflow_ft.stages import following

    then = str(original.run.data.tags.get(following.TAG, "1 process"))
    if int(then.split()[0]) != ranks.size():
        raise ConfigError(
            f"run {original.run_id} was trained by {then}, this would be {ranks.size()}",
            hint="start it in the same way: torchrun --nproc-per-node N -m mlflow_ft reproduce RUN_ID",
        )


def link(job: Job, original: Original) -> None:
    """Tag the new run with the original, and take from it what would make it an interrupted run of the same command."""
    from mlflow_ft.tracking import unfinished

    job.run.set_tags({unfinished.REPRODUCES: original.run_id, unfinished.CONFIG_KEY: ""})


def changed_environment(original: Original, now: Facts) -> list[Change]:
    """What has changed, of all that may only round differently: code, plugins, libraries, machine."""
    return changes.differences(original.facts, now, kinds=("code", "plugin", "library", "machine"))


def check_inputs(original: Original, job: Job) -> None:
    """Compare what the new run recorded about its data, base model and rewards with the original, before the training.

    Raises:
        DataError: something differs.
    """
    now = changes.of_run(job.run.read().data.tags, job.config)
    differing = changes.differences(original.facts, now, kinds=("data", "base", "rewards"))
    if differing:
        raise DataError(
            f"run {original.run_id} cannot be reproduced: not everything that it was trained with is the same",
            problems=[change.problem for change in differing],
            hint="restore it, or train a new run; nothing was trained",
        )
