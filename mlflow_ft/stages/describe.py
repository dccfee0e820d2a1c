"""What MLflow's UI shows of a run at first sight: its name and its description."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_ft.errors import TrackingError
from mlflow_ft.forms import card, report, run_page
from mlflow_ft.job import Job
from mlflow_ft.values import Data, Package, Scores, Trained, Version

FLUSH_SECONDS = 30.0
"""How long the report waits for the curves to arrive."""


def rename(job: Job) -> None:
    """Give the run a name that says what it is, in place of one that MLflow made up."""
    if tags := run_page.renaming(job.run.read().info.run_name, job.config):
        job.run.set_tags(tags)


def begin(job: Job) -> None:
    """Say what was asked; what users have written stays."""
    from mlflow_ft.tracking import NOTE

    text, note = run_page.begun(job.config), _note(job)
    if text not in note:
        job.run.set_tags({NOTE: "\n\n".join(filter(None, [text, note]))})


def finish(
    job: Job, data: Data, trained: Trained, scores: Scores, package: Package, versions: Sequence[Version]
) -> None:
    """Say how it went, in place of what was asked."""
    from mlflow_ft.tracking import NOTE

    text = run_page.finished(job, data, trained, scores, package, versions)
    job.run.set_tags({NOTE: run_page.replaced(_note(job), run_page.begun(job.config), text)})
    if package.models:
        text = (package.models[0].folder / card.CARD).read_text(encoding="utf-8")
        job.run.artifact_text(card.limits_in(text), report.LIMITS_FILE)
    _report(job)


def _report(job: Job) -> None:
    """Log the report, and list the scores among those of other runs; a run does not fail for want of them."""
    from mlflow_ft import tracking

    try:
        job.run.flush(FLUSH_SECONDS)
        store = tracking.Store.connect(job.run.tracking_uri)
        facts = report.gathered(store, job.run.run_id, lower_is_better=job.registry.lower_is_better)
    except TrackingError as error:
        job.progress.warn(f"there is no {report.FILE} ({error.message}); `mlflow-ft report {job.run.run_id}` writes it")
        return
    job.run.artifact_text(report.as_page(facts), report.FILE)
    try:
        store.list_scores(facts.run, run_page.columns(facts.tuned, facts.verdict))
    except TrackingError as error:  # some may make runs, but not change the experiment
        job.progress.warn(f"the experiment's list of runs does not show the scores ({error.message})")


def _note(job: Job) -> str:
    from mlflow_ft.tracking import NOTE

    return str(job.run.read().data.tags.get(NOTE, ""))
