"""Whether a resumed run still has the base model and the rows that it began with."""

from __future__ import annotations

from mlflow_ft.errors import FineTuneError
from mlflow_ft.job import Job


def check(job: Job, tag: str, now: str, *, what: str, error: type[FineTuneError], hint: str) -> None:
    """Refuse to resume a run if a tag that it recorded would be another one now; nothing to do for other runs.

    Raises:
        `error`: `what` changed, and changes were not accepted.
    """
    then = job.resume.recorded.get(tag) if job.resume else None
    if then is None or then == now or job.resume is None:
        return
    message = f"{what} changed since the run was started: {then} then, {now} now"
    if not job.resume.accept_changes:
        raise error(message, hint=f"{hint}, or accept the change with --accept-changes")
    job.progress.warn(f"accepted: {message}")
    job.run.set_tags({f"{tag}.accepted_change": f"{then} -> {now}"})
