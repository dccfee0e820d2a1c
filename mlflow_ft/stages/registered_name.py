"""The name of a run's registered models."""

from __future__ import annotations

import re

from mlflow_ft.job import Job
from mlflow_ft.values import Trained


def model_name(job: Job, trained: Trained) -> str:
    """`registry.model_name` if set, else `<base model>-<method>`, in the characters that MLflow allows."""
    given = job.config.registry.model_name
    short = trained.base.name.rstrip("/").rpartition("/")[2]
    return given or re.sub(r"[^\w.-]+", "-", f"{short}-{job.config.method}")
