"""Add to an error how the run continues after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_ft.errors import FineTuneError, RefusedError, StoppedError, UndeliveredError
from mlflow_ft.job import Job
from mlflow_ft.values import Trained


@contextmanager
def naming_resume(run_id: str) -> Iterator[None]:
    """If a signal stops the run, say how it continues."""
    try:
        yield
    except StoppedError as error:
        error.hint = "\n  ".join(filter(None, (error.hint, f"to continue: mlflow-ft resume {run_id}")))
        raise


@contextmanager
def naming_weights(job: Job, trained: Trained) -> Iterator[None]:
    """If a stage after the training fails for a reason other than a refusal, say where the weights are."""
    try:
        yield
    except (RefusedError, UndeliveredError):  # which say what to do themselves
        raise
    except BaseException as error:  # including signals; it is raised again
        weights = trained.adapter or trained.model
        note = f"the trained weights are in {weights}"
        if not isinstance(error, StoppedError):
            note += f"; to continue after a fix: mlflow-ft resume {job.run.run_id}"
        if isinstance(error, FineTuneError):
            error.hint = "\n  ".join(filter(None, (error.hint, note)))
        else:
            error.add_note(note)
        raise
