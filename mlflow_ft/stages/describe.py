"""What MLflow's UI shows of a run at first sight: its name and its description."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_ft.forms import run_page
from mlflow_ft.job import Job
from mlflow_ft.values import Data, Package, Scores, Version

NAME = "mlflow.runName"


def rename(job: Job) -> None:
    """Give the run a name that says what it is, in place of one that MLflow made up."""
    if run_page.GENERATED.fullmatch(job.run.read().info.run_name or ""):
        job.run.set_tags({NAME: run_page.name(job.config)})


def begin(job: Job) -> None:
    """Say what was asked; what users have written stays."""
    from mlflow_ft.tracking import NOTE

    text, note = run_page.begun(job.config), _note(job)
    if text not in note:
        job.run.set_tags({NOTE: "\n\n".join(filter(None, [text, note]))})


def finish(job: Job, data: Data, scores: Scores, package: Package, versions: Sequence[Version]) -> None:
    """Say how it went, in place of what was asked."""
    from mlflow_ft.tracking import NOTE

    text = run_page.finished(job, data, scores, package, versions)
    job.run.set_tags({NOTE: run_page.replaced(_note(job), run_page.begun(job.config), text)})


def _note(job: Job) -> str:
    from mlflow_ft.tracking import NOTE

    return str(job.run.read().data.tags.get(NOTE, ""))
