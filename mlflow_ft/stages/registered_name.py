"""What the registered models of a run are called."""

from __future__ import annotations

import re

from mlflow_ft.job import Job
from mlflow_ft.values import Trained


def model_name(job: Job, trained: Trained) -> str:
    """The name that was given, or `<base model>-<method>`, in the letters that MLflow allows."""
    given = job.config.registry.model_name
    short = trained.base.name.rstrip("/").rpartition("/")[2]
    return given or re.sub(r"[^\w.-]+", "-", f"{short}-{job.config.method}")
