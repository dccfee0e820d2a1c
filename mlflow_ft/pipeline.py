"""The pipeline: config -> data -> model -> train -> evaluate -> package -> register."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config import Given
from mlflow_ft.config.schema import Config
from mlflow_ft.job import Job
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.values import Scores, Version

if TYPE_CHECKING:
    from mlflow_ft.operations.reproducing.verdict import Reproduction
    from mlflow_ft.operations.sweeping.trial import Trial
    from mlflow_ft.preparing.dataset import CheckedData
    from mlflow_ft.preparing.fix import Cleaned
    from mlflow_ft.tracking import ActiveRun


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run."""

    run_id: str
    tracking_uri: str
    url: str | None
    folder: str
    scores: Scores
    versions: tuple[Version, ...]


def run(config: Config, plugins: Plugins, *, progress: Progress | None = None, now: datetime | None = None) -> Outcome:
    """Fine-tune one model: one job, one MLflow run, from the rows to the registered versions.

    With `run.resume` auto an interrupted run with the same settings is continued instead, if there is one. `now` is the
    time of the whole run, for chat templates that write the date; the current time if not given.

    Raises:
        FineTuneError: something the user can fix, or the model was refused; the run is FAILED, with the message as tag.
    """
    from mlflow_ft.operations import interrupted, launching
    from mlflow_ft.stages import following, preflight, start

    registry, progress = Registry(plugins), progress or Progress()
    with preflight.reporting_to_run():
        if launcher := launching.launcher(config, registry):
            request = launching.of_config(config, now=now, quiet=progress.quiet)
            return launching.result(launcher, config, request, Outcome)
        preflight.check(config, plugins=plugins, registry=registry, progress=progress)
        following.gather(config)
    from mlflow_ft import tracking

    tracking.check_server()  # which creates a new local store
    if run_id := interrupted.same_command(config, progress):
        return resume(run_id, plugins, settings=interrupted.processes_of(config), progress=progress)
    with tracking.open_run(config.run, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress)
        with start.reporting_to_plugins(job), clock_of(config, now):
            return _stages(job, active)


def resume(
    run_id: str,
    plugins: Plugins,
    *,
    settings: Sequence[Given] = (),
    accept_changes: bool = False,
    only_package: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Continue a run that ended before its time, in the same MLflow run, where it stopped.

    Stages that are complete are not repeated; a training continues from its last sound checkpoint, on disk or in the
    store. Models that an interrupted stage logged are replaced, so that the run has one set of models and versions.

    Args:
        settings: replace recorded ones.
        accept_changes: continue although something changed since, which is then recorded.
        only_package: refuse to train: the training must be complete.

    Raises:
        FineTuneError: as `run`, or the run is finished, is not interrupted, or something changed since.
    """
    from mlflow_ft.operations import interrupted, launching, recorded_run
    from mlflow_ft.stages import following, preflight, start

    registry, progress = Registry(plugins), progress or Progress()
    from mlflow_ft import tracking
    from mlflow_ft.tracking import unfinished

    settings = interrupted.from_here(settings)
    with preflight.reporting_to_run():
        interrupted_run = unfinished.find_run(run_id)
    with recorded_run.working_folder(interrupted_run):
        with preflight.reporting_to_run():
            earlier = interrupted.find(
                interrupted_run,
                plugins,
                registry,
                progress,
                settings=settings,
                accept=accept_changes,
                of_sweep=only_package,
            )
            if only_package:
                interrupted.check_trained(earlier)
            if launcher := launching.launcher(earlier.config, registry):
                request = launching.to_resume(
                    run_id, settings, accept_changes=accept_changes, only_package=only_package, quiet=progress.quiet
                )
                return launching.result(launcher, earlier.config, request, Outcome)
            preflight.check(earlier.config, plugins=plugins, registry=registry, progress=progress, run_id=run_id)
            following.gather(earlier.config)
        with unfinished.reopening(interrupted_run), tracking.open_run(earlier.config.run, plugins=plugins) as active:
            job = interrupted.reopen(earlier, plugins, registry, active, progress)
            with start.reporting_to_plugins(job), clock_of(earlier.config, earlier.moment):
                return _stages(job, active)


def reproduce(
    run_id: str,
    plugins: Plugins,
    *,
    tolerance: float | None = None,
    output_dir: Path | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Train a run again from its record, as a new run, and compare curves, scores and weights.

    Nothing is packaged, logged as a model or registered. `tolerance` replaces the usual one; 0 is bit for bit.

    Raises:
        FineTuneError: as `run`, or the record is incomplete. DataError: data, base model or rewards have changed.
        NotReproducedError: the results differ.
    """
    from mlflow_ft.operations import changes, launching, recorded_run
    from mlflow_ft.operations.reproducing import original, verdict
    from mlflow_ft.stages import data, evaluate, following, model, preflight, start, train

    registry, progress = Registry(plugins), progress or Progress()
    with preflight.reporting_to_run():
        earlier = original.find(run_id, registry, output_dir=output_dir)
        config = earlier.config
        with recorded_run.working_folder(earlier.run):
            if launcher := launching.launcher(config, registry):
                request = launching.to_reproduce(run_id, tolerance, output_dir, quiet=progress.quiet)
                return launching.result(launcher, config, request, verdict.Reproduction)
            preflight.check(config, plugins=plugins, registry=registry, progress=progress)
            following.gather(config)
            original.check_processes(earlier)
    from mlflow_ft import tracking

    environment = original.changed_environment(earlier, changes.current(config, plugins))
    rule = verdict.rule(earlier, environment, tolerance=tolerance)
    verdict.announce(earlier, environment, rule, progress)
    with recorded_run.working_folder(earlier.run), tracking.open_run(config.run, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress)
        original.link(job, earlier)
        with start.reporting_to_plugins(job), clock_of(config, earlier.moment):
            job, base = model.find(job)
            rows = data.prepare(job, base)
            original.check_inputs(earlier, job)
            following.share(job, rows, base)
            job, trained = train.train(job, rows, base)
            evaluate.evaluate(job, rows, trained)
            return verdict.judge(job, earlier, trained, environment, rule)


def trial(
    config: Config, plugins: Plugins, sweep: Trial, *, accept_changes: bool = False, progress: Progress | None = None
) -> Scores:
    """One trial of a sweep, from the base model and the rows to the scores: nothing is packaged or registered.

    Raises:
        FineTuneError: as `run`, or the rows do not have the score that is optimised. PrunedError: others are better.
    """
    from mlflow_ft.stages import batch_size, data, evaluate, model, start, train

    registry, progress = Registry(plugins), progress or Progress()
    opened = sweep.opened(config, plugins, registry, progress, accept_changes=accept_changes)
    with opened as (job, moment), start.reporting_to_plugins(job), clock_of(job.config, moment):
        job, base = model.find(job)
        rows = data.prepare(job, base)
        sweep.check(job, rows)
        job = batch_size.settle(job, rows, base)
        job, trained = train.train(job, rows, base)
        return evaluate.evaluate(job, rows, trained)


def _stages(job: Job, active: ActiveRun) -> Outcome:
    """From the base model and the rows to the registered versions."""
    from mlflow_ft.operations import what_next
    from mlflow_ft.stages import batch_size, data, describe, evaluate, following, model, package, register, train, worse

    describe.rename(job)
    describe.begin(job)
    with what_next.naming_resume(active.run_id), following.naming_lost():
        job, base = model.find(job)
        rows = data.prepare(job, base)
        job = batch_size.settle(job, rows, base)
        following.share(job, rows, base)
        job, trained = train.train(job, rows, base)
        with what_next.naming_weights(job, trained):
            scores = evaluate.evaluate(job, rows, trained)
            packaged = package.package(job, rows, trained, scores)
            versions = register.register(job, rows, trained, packaged, scores)
            describe.finish(job, rows, trained, scores, packaged, versions)
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
    """Hold the clock of every chat template that is rendered inside: at the day of `data.date`, else at `now`."""
    from mlflow_ft.engine.tokens import clock

    with clock.held(clock.of_run(config, now or clock.current())):
        yield


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The result of a run that only prepares data."""

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
    """The data stage as a separate run: everything is printed and logged, and with `fix` a cleaned copy is written.

    Raises:
        FineTuneError: something the user can fix. RefusedError: a check found what `data.fail_on` refuses, and `fix`
        is not set.
    """
    from mlflow_ft.engine import hub
    from mlflow_ft.stages import data, describe, model, preflight, start

    registry, progress = Registry(plugins), progress or Progress()
    with preflight.reporting_to_run():
        preflight.check(config, plugins=plugins, registry=registry, progress=progress)
    from mlflow_ft import tracking

    tracking.check_server()  # which creates a new local store
    with tracking.open_run(config.run, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress)
        with start.reporting_to_plugins(job), clock_of(config, now):
            describe.rename(job)
            base = hub.find(config.model, job.progress, weights=False)
            job = model.fitted(job, base)
            checked = data.check_rows(job, base, strict=not fix)
            cleaned = data.clean(job, checked, out) if fix else None
            if not fix:
                data.refuse(checked, config.data.fail_on)
    return Prepared(
        run_id=active.run_id,
        tracking_uri=active.tracking_uri,
        url=active.url,
        folder=str(job.folder),
        data=checked,
        cleaned=cleaned,
    )
