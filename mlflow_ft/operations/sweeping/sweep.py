"""Runs the trials of a sweep, each in its own process and nested run, and has the best one registered."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, FineTuneError, RefusedError, StoppedError, TrackingError, UndeliveredError
from mlflow_ft.operations import changes, what_next
from mlflow_ft.operations.sweeping import report
from mlflow_ft.operations.sweeping.plan import PLAN_FILE, Plan, key, read_plan
from mlflow_ft.operations.sweeping.study import Study
from mlflow_ft.operations.sweeping.work import Work
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.values import Places

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import ActiveRun

STUDY = "mlflow_ft.study"
"""The tag of a sweep that says where its study is."""


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """The result of a finished sweep."""

    run_id: str
    tracking_uri: str
    url: str | None
    best_run_id: str
    best: Mapping[str, Any]
    """The best trial: its row in the table of trials."""
    versions: tuple[Mapping[str, Any], ...]
    trials: tuple[Mapping[str, Any], ...]


def run(
    plan: Plan,
    config: Config,
    plugins: Plugins,
    *,
    places: Places,
    progress: Progress,
    accept_changes: bool = False,
    environ: MutableMapping[str, str] = os.environ,
) -> SweepOutcome:
    """Run all trials, or the rest of them if the run that MLFLOW_RUN_ID names began the sweep, and register the best.

    Raises:
        FineTuneError: no trial is complete, or the best model was refused; the hint says how to go on.
    """
    from mlflow_ft import tracking

    named = config.run.model_copy(update={"name": config.run.name or f"sweep {plan.method}"})
    with (
        tracking.open_run(named, plugins=plugins, environ=environ) as active,
        what_next.naming_resume(active.run_id),
    ):
        active.begin("config")
        folder = config.run.output_dir.expanduser().resolve() / active.run_id
        active.open_journal(folder, continues=False)
        active.continue_curves()
        file = _study_file(active, folder)
        study = Study(file, active.run_id, plan=plan)
        _record(active, plan, config, plugins, file)
        active.begin("trials")
        work = Work(active, study, file, progress, places=places, environ=environ, accept_changes=accept_changes)
        try:
            with active.deferring_stop():
                work.run_trials()
        finally:
            report.log_table(active, study)
        best = _best(study)
        active.begin("register")
        with _naming_package(active.run_id):
            versions = work.register(best.user_attrs["run"])
        report.log_summary(active, study, best, versions, folder)
        rows = report.rows(study)
        return SweepOutcome(
            run_id=active.run_id,
            tracking_uri=active.tracking_uri,
            url=active.url,
            best_run_id=best.user_attrs["run"],
            best=next(row for row in rows if row["trial"] == best.number),
            versions=tuple(versions),
            trials=tuple(rows),
        )


def interrupted_plan(run: Run) -> Plan:
    """The plan of a sweep that did not end.

    Raises:
        ConfigError: the run is not a sweep's, or is finished. TrackingError: a process is working on it.
    """
    from mlflow_ft import tracking
    from mlflow_ft.tracking import heartbeat

    recorded = tracking.read_json(run.info.run_id, PLAN_FILE)
    if recorded is None:
        raise ConfigError(
            f"run {run.info.run_id} is not a sweep", hint="pass the run id that `mlflow-ft sweep` printed"
        )
    if run.info.status == "FINISHED":
        raise ConfigError(f"the sweep {run.info.run_id} is FINISHED", hint="there is nothing left to resume")
    if run.info.status == "RUNNING" and (worker := heartbeat.working_on(run.data.tags)):
        raise TrackingError(f"the sweep {run.info.run_id} is not interrupted: {worker}", hint="wait for it, or stop it")
    if (file := run.data.tags.get(STUDY)) and not Path(file).is_file():
        raise ConfigError(f"the study of the sweep is gone: {file}", hint="restore the file, or start a new sweep")
    return read_plan(recorded)


def check_unchanged(run: Run, config: Config, plugins: Plugins) -> None:
    """Refuse to continue a sweep with other code, plugins or libraries: its trials could not be compared.

    Raises:
        ConfigError: something changed since.
    """
    then, now = changes.of_run(run.data.tags, config), changes.current(config, plugins)
    changed = [
        change
        for change in changes.differences(then, now, kinds=("code", "plugin", "library"))
        if change.then != changes.NOT_RECORDED
    ]
    if changed:
        raise ConfigError(
            f"not resumed: what decides the trials of the sweep {run.info.run_id} has changed since",
            problems=[change.problem for change in changed],
            hint="undo it, or accept it: mlflow-ft resume RUN_ID --accept-changes",
        )


def _study_file(active: ActiveRun, folder: Path) -> Path:
    """Where the study is: beside a tracking store that is a file, else in the sweep's folder."""
    from mlflow_ft.tracking.server import sqlite_file

    if recorded := active.read().data.tags.get(STUDY):
        return Path(recorded)
    store = sqlite_file(active.tracking_uri)
    return store.absolute().parent / "sweeps" / f"{active.run_id}.journal" if store else folder / "study.journal"


def _record(active: ActiveRun, plan: Plan, config: Config, plugins: Plugins, file: Path) -> None:
    from mlflow_ft.tracking.unfinished import CONFIG_KEY, FOLDER

    tags = {"mlflow_ft.method": f"sweep {plan.method}", CONFIG_KEY: key(config, plan), STUDY: str(file)}
    active.set_tags(tags | {FOLDER: str(active.folder)})
    active.log_environment(plugins)
    active.artifact_text(plan.as_json(), PLAN_FILE)


def _best(study: Study) -> Any:
    best = study.best
    if best is None:
        reasons = [f"trial {row['trial']}: {row['error']}" for row in report.rows(study) if row["error"]]
        raise FineTuneError(
            "no trial is complete, so nothing was registered" + (f"; {reasons[-1]}" if reasons else ""),
            hint="fix the cause, or narrow the space to what works",
        )
    return best


@contextmanager
def _naming_package(run_id: str) -> Iterator[None]:
    """Say how the sweep goes on if the best model could not be registered."""
    try:
        yield
    except (StoppedError, RefusedError, UndeliveredError):
        raise
    except FineTuneError as error:
        error.hint = f"the trials are complete; after a fix: mlflow-ft resume {run_id}"
        raise
