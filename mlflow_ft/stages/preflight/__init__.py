"""Before an MLflow run is opened: check all that can be checked without weights, and report all problems at once.

A mistyped path, a read-only store or a full disk leaves no FAILED run, and costs seconds. What needs a whole file, or a
model in memory, is checked later, in the run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import FineTuneError
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages.preflight import base_model, inputs, machine, stores
from mlflow_ft.stages.preflight.examination import Examination
from mlflow_ft.stages.start import PREPARE

OF_ROWS = {"method", "data.format"}
"""Settings without which the format of the rows cannot be recognised or judged."""


def check(
    config: Config,
    *,
    plugins: Plugins,
    registry: Registry,
    progress: Progress,
    later: Collection[str] = (),
    run_id: str | None = None,
) -> None:
    """Check everything that the configuration names, MLflow, and the machine; warnings go to `progress`.

    `later` are names of things that do not exist yet, but will. `run_id` is the run, if it is continued.

    Raises:
        FineTuneError: one thing is wrong. ConfigError: several are; each is listed with its place and its remedy.
    """
    with progress.bar("check settings, model, data and machine"):  # heavy modules are imported on the way
        examination = examine(config, plugins=plugins, registry=registry, later=later, run_id=run_id)
        for caution in examination.cautions:
            if caution.check != "plugins":  # said when they were loaded
                progress.warn(f"{caution.detail}; {caution.remedy}" if caution.remedy else caution.detail)
        if examination.refused:
            raise examination.refused


def examine(
    config: Config,
    *,
    plugins: Plugins,
    registry: Registry,
    later: Collection[str] = (),
    run_id: str | None = None,
) -> Examination:
    """Run every check, and leave nothing behind; arguments as for `check`."""
    examination = Examination(config)
    wrong = inputs.check_names(examination, registry)
    place = stores.check(examination, run_id)
    base = base_model.find(examination, later, reachable=place is not None)
    trains = config.method != PREPARE
    if base:
        task = registry.trainers[config.method].task if trains and "method" not in wrong else None
        base_model.check_contents(examination, base, task)
    if inputs.check_files(examination, registry, reachable=place is not None) and not wrong & OF_ROWS:
        inputs.check_rows(examination, plugins, registry)
    if trains:
        machine.check_device(examination, base)
        if base and not wrong:
            machine.check_memory(examination, registry, base, place)
    if machine.check_output(examination) and trains and base and "adapter.kind" not in wrong:
        machine.check_room(examination, registry, base, place.folder if place else None, run_id)
    examination.check("plugins", lambda: machine.check_plugins(plugins, config.plugins.allow))
    return examination


def check_inputs(config: Config, *, plugins: Plugins, registry: Registry) -> None:
    """Check what the configuration names, for a command that opens no run.

    Raises:
        FineTuneError: as `check`.
    """
    examination = Examination(config)
    wrong = inputs.check_names(examination, registry)
    base_model.find(examination)
    if inputs.check_files(examination, registry) and not wrong & OF_ROWS:
        inputs.check_rows(examination, plugins, registry)
    if examination.refused:
        raise examination.refused


@contextmanager
def reporting_to_run() -> Iterator[None]:
    """Also report an error to the MLflow run that `mlflow run` opened, if any."""
    try:
        yield
    except FineTuneError as error:
        report_to_run(error)
        raise


def report_to_run(error: FineTuneError) -> None:
    """Mark the run that `mlflow run` opened FAILED with the error's message; nothing without such a run."""
    if "MLFLOW_RUN_ID" in os.environ:  # importing MLflow takes seconds; avoid it for a typo
        from mlflow_ft import tracking

        tracking.refuse(error)
