"""What an interrupted attempt of a resumed run left in MLflow and on disk, and its removal before it is made again."""

from __future__ import annotations

import shutil

from mlflow_ft.job import Job


def remove_models(job: Job) -> None:
    """Remove the models that were logged and registered before the packaging was complete, and their files.

    Raises:
        TrackingError: one of the versions has an alias that the run did not set.
    """
    if job.resume is None:
        return
    from mlflow_ft.tracking import unfinished

    removed = unfinished.remove(unfinished.find_run(job.run.run_id), alias=job.config.registry.alias)
    _report(job, removed)
    shutil.rmtree(job.folder / "package", ignore_errors=True)


def remove_checkpoints(job: Job) -> None:
    """Remove the checkpoints that were logged as models after the step from which the training continues."""
    if job.resume is None:
        return
    from mlflow_ft.tracking import unfinished

    run = unfinished.find_run(job.run.run_id)
    _report(job, unfinished.remove_checkpoints(run, after=job.resume.step))


def _report(job: Job, removed: list[str]) -> None:
    if removed:
        job.progress.say(f"removed what the interrupted attempt left: {', '.join(removed)}")
