"""The one sentence: config -> data -> model -> train -> evaluate -> package -> register."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config
from mlflow_ft.job import Job
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.values import Data, Scores, Trained, Version

if TYPE_CHECKING:
    from mlflow_ft.preparing.dataset import CheckedData
    from mlflow_ft.preparing.fix import Cleaned
    from mlflow_ft.tracking import ActiveRun


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run has to show."""

    run_id: str
    tracking_uri: str
    url: str | None
    folder: str
    scores: Scores
    versions: tuple[Version, ...]


def run(config: Config, plugins: Plugins, *, progress: Progress | None = None, now: datetime | None = None) -> Outcome:
    """Fine-tune one model: one job, one MLflow run, from the rows to the registered versions.

    `now` is the clock of the whole run, for chat templates that write the date; the present moment when not given.

    Raises:
        FineTuneError: whatever the user can mend, or the evidence refuses; the run is FAILED, with the message as tag.
    """
    from mlflow_ft.stages import data, model, preflight, start, train

    registry, progress = Registry(plugins), progress or Progress()
    with preflight.reporting_to_run():
        accept = partial(data.fits, config.method, registry)
        preflight.check(config, plugins=plugins, registry=registry, accept=accept)
    from mlflow_ft import tracking  # takes seconds, which a mistyped path need not cost

    tracking.check_server()
    with tracking.open_run(config.run, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress)
        with start.reporting_to_plugins(job), clock_of(config, now):
            job, base = model.find(job)
            rows = data.prepare(job, base)
            trained = train.train(job, rows, base)
            return _finished(job, rows, trained, active)


def package(run_id: str, plugins: Plugins, *, progress: Progress | None = None) -> Outcome:
    """Take up a run that was trained and not packaged: evaluate, package and register what its folder holds.

    The run is opened again and ends FINISHED. What an earlier attempt registered or logged is replaced, so that the
    run has one set of models and versions.

    Raises:
        FineTuneError: as `run`, and where the run was not trained to its end, is finished already, or its base or rows
        are not what they were.
    """
    from mlflow_ft.operations import unpackaged
    from mlflow_ft.stages import start

    registry, progress = Registry(plugins), progress or Progress()
    from mlflow_ft import tracking
    from mlflow_ft.tracking import unfinished

    left = unpackaged.find(run_id, registry)
    with unfinished.reopening(left.run), tracking.open_run(left.config.run, plugins=plugins) as active:
        job = unpackaged.reopen(left, plugins, registry, active, progress)
        with start.reporting_to_plugins(job), clock_of(left.config, left.moment):
            trained = unpackaged.trained(job, left)
            rows = unpackaged.data(job, left, trained.base)
            unpackaged.clear(left, job.progress)
            return _finished(job, rows, trained, active)


def _finished(job: Job, rows: Data, trained: Trained, active: ActiveRun) -> Outcome:
    """What comes after the training: scores, forms, versions."""
    from mlflow_ft.operations import unpackaged
    from mlflow_ft.stages import evaluate, package, register, worse

    with unpackaged.kept(job, trained):
        scores = evaluate.evaluate(job, rows, trained)
        packaged = package.package(job, rows, trained, scores)
        versions = register.register(job, rows, trained, packaged, scores)
    worse.refuse(job, trained, scores, versions)
    return Outcome(
        run_id=active.run_id,
        tracking_uri=active.tracking_uri,
        url=active.url,
        folder=str(job.folder),
        scores=scores,
        versions=versions,
    )


@contextmanager
def clock_of(config: Config, now: datetime | None = None) -> Iterator[None]:
    """One moment for every chat template that is rendered inside: the day of `data.date`, else `now`."""
    from mlflow_ft.engine.tokens import clock

    with clock.held(clock.of_run(config, now or clock.current())):
        yield


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run that only looks at the data has to show."""

    run_id: str
    tracking_uri: str
    url: str | None
    folder: str
    data: CheckedData
    cleaned: Cleaned | None


def prepare(
    config: Config,
    plugins: Plugins,
    *,
    fix: bool = False,
    out: Path | None = None,
    progress: Progress | None = None,
    now: datetime | None = None,
) -> Prepared:
    """The data stage in a run of its own: everything is told and logged, and with `fix` a cleaned copy is written.

    Raises:
        FineTuneError: whatever the user can mend. RefusedError: a check found what `data.fail_on` does not let pass,
        and it was not fixed.
    """
    from mlflow_ft.engine import hub
    from mlflow_ft.stages import data, model, preflight, start

    registry, progress = Registry(plugins), progress or Progress()
    with preflight.reporting_to_run():
        preflight.check(config, plugins=plugins, registry=registry)
    from mlflow_ft import tracking

    tracking.check_server()
    with tracking.open_run(config.run, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress)
        with start.reporting_to_plugins(job), clock_of(config, now):
            base = hub.find(config.model, job.progress, weights=False)
            job = model.fitted(job, base)
            found = data.look(job, base, strict=not fix)
            cleaned = data.clean(job, found, out) if fix else None
            if not fix:
                data.refuse(found, config.data.fail_on)
    return Prepared(
        run_id=active.run_id,
        tracking_uri=active.tracking_uri,
        url=active.url,
        folder=str(job.folder),
        data=found,
        cleaned=cleaned,
    )
