"""One trial, in its own process: opens its nested run, or continues it, and ends it if its loss is hopeless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import DataError, PrunedError
from mlflow_ft.job import Job
from mlflow_ft.operations import interrupted
from mlflow_ft.operations.sweeping.study import Study
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import evaluate, preflight, start
from mlflow_ft.values import Data


class Trial:
    """A trial that the sweep has drawn, for which it has opened the run that MLFLOW_RUN_ID names."""

    def __init__(self, file: Path, sweep: str, number: int) -> None:
        self._study = Study(file, sweep)
        self._number = number
        (drawn,) = [trial for trial in self._study.open_trials() if trial.number == number]
        self._drawn = drawn

    @property
    def arguments(self) -> list[str]:
        """Its command line: method and settings."""
        return self._study.plan.trial_arguments(self._drawn.values)

    @contextmanager
    def opened(
        self, config: Config, plugins: Plugins, registry: Registry, progress: Progress, *, accept_changes: bool
    ) -> Iterator[tuple[Job, datetime | None]]:
        """The job in its run, from its last checkpoint if it was interrupted, and the time of its templates."""
        from mlflow_ft import tracking
        from mlflow_ft.tracking import trials, unfinished

        own = config.run.model_copy(update={"name": self._drawn.name})
        alone = config.launch.model_copy(update={"launcher": "local"})  # whoever started it, it is one process
        config = config.model_copy(update={"run": own, "launch": alone})
        earlier = None
        with preflight.reporting_to_run():
            run = trials.settled(unfinished.find_run(os.environ["MLFLOW_RUN_ID"]))
            if tracking.Store.connect().read(run.info.run_id, "config.yaml"):
                run = trials.closed(run.info.run_id, "its process is gone")
                earlier = interrupted.find(run, plugins, registry, progress, accept=accept_changes, of_sweep=True)
                config = earlier.config
            begun = run.info.run_id if earlier else None
            preflight.check(config, plugins=plugins, registry=registry, progress=progress, run_id=begun)
        with tracking.open_run(config.run, plugins=plugins) as active:
            if earlier:
                job = interrupted.reopen(earlier, plugins, registry, active, progress)
            else:
                job = start.job(config, plugins, registry, active, progress)
            yield replace(job, watch_loss=partial(self._watch, job)), earlier.moment if earlier else None

    def check(self, job: Job, data: Data) -> None:
        """Refuse an objective that these rows do not have, and other rows than before, before the model is loaded.

        Raises:
            ConfigError: no evaluator that applies to the rows returns it. DataError: the rows have changed.
        """
        if not self._study.has_rows(f"{data.train.digest} {data.eval.digest}"):
            raise DataError(
                "the rows are not those of the sweep's first trial: the trials could not be compared",
                hint="restore the data, or start a new sweep",
            )
        where = f" for {data.kind} rows like these"
        self._study.plan.objective.check(evaluate.chosen(job, data), data.guards, where=where)

    def _watch(self, job: Job, share: float, loss: float) -> None:
        """Called with each held-out loss during training.

        Raises:
            PrunedError: the trial should end.
        """
        from mlflow_ft.tracking import trials

        if reason := self._study.hopeless(self._number, share=share, loss=loss):
            job.run.set_tags({trials.PRUNED: reason})
            raise PrunedError(f"pruned: {reason}")
