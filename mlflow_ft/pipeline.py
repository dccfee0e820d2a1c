"""The one sentence: config -> data -> model -> train -> evaluate -> package -> register."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_ft.config.schema import Config
from mlflow_ft.job import Scores, Version
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run has to show."""

    run_id: str
    tracking_uri: str
    url: str | None
    folder: str
    scores: Scores
    versions: tuple[Version, ...]


def run(config: Config, plugins: Plugins, *, progress: Progress | None = None) -> Outcome:
    """Fine-tune one model: one job, one MLflow run, from the rows to the registered versions.

    Raises:
        FineTuneError: whatever the user can mend, or the evidence refuses; the run is FAILED, with the message as tag.
    """
    from mlflow_ft import tracking
    from mlflow_ft.stages import data, evaluate, model, package, register, start, train

    registry = Registry(plugins)
    tracking.check_server()
    with tracking.open_run(config, plugins=plugins) as active:
        job = start.job(config, plugins, registry, active, progress or Progress())
        with start.told_to_plugins(job):
            base = model.find(job)
            rows = data.prepare(job, base)
            trained = train.train(job, rows, base)
            scores = evaluate.evaluate(job, rows, trained)
            packaged = package.package(job, rows, trained, scores)
            versions = register.register(job, rows, trained, packaged)
    return Outcome(
        run_id=active.run_id,
        tracking_uri=active.tracking_uri,
        url=active.url,
        folder=str(job.folder),
        scores=scores,
        versions=versions,
    )
