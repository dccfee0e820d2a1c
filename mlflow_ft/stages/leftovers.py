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

    def remove() -> list[str]:
        return unfinished.remove(unfinished.find_run(job.run.run_id), alias=job.config.registry.alias)

    _report(job, job.run.needing("remove the models of the interrupted attempt", remove))
    shutil.rmtree(job.folder / "package", ignore_errors=True)


def remove_checkpoints(job: Job) -> None:
    """Remove the checkpoints that were logged as models after the step from which the training continues."""
    if job.resume is None:
        return
    from mlflow_ft.tracking import unfinished

    step = job.resume.step

    def remove() -> list[str]:
        return unfinished.remove_checkpoints(unfinished.find_run(job.run.run_id), after=step)

    _report(job, job.run.needing("remove later checkpoints", remove))


def _report(job: Job, removed: list[str]) -> None:
    if removed:
        job.progress.say(f"removed what the interrupted attempt left: {', '.join(removed)}")
