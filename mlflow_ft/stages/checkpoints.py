"""Checkpoints on request: the model at each evaluation, logged with its held-out loss."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from mlflow_ft.forms import proving_forms
from mlflow_ft.job import Job
from mlflow_ft.stages.package import lineage
from mlflow_ft.values import BaseModel, Data, Trained


def with_checkpoints(job: Job, data: Data, base: BaseModel) -> Job:
    """The job with a function that logs checkpoints, if `training.log_checkpoints` is set."""
    if not job.config.training.log_checkpoints:
        return job
    return replace(job, keep_checkpoint=partial(keep, job, data, base))


def keep(job: Job, data: Data, base: BaseModel, module: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Log the model as `checkpoint-STEP`, with its metrics linked to it and to the held-out rows.

    It is neither compared nor registered.
    """
    from mlflow_ft.engine.serving import bundle
    from mlflow_ft.engine.training import checkpoints
    from mlflow_ft.tracking import write_manifest

    folder = job.folder / "checkpoints" / f"step-{step:06}"
    try:
        weights = checkpoints.save(module, folder, beginning=job.folder)
        trained = Trained(folder=folder, base=base, metrics={})
        if trained.adapter:
            weights = folder / "packaged"
            bundle.copy_adapter(job, trained, weights)
        bundle.complete(job, data, weights, base=base)
        write_manifest(weights)
        model = proving_forms.model_to_log(
            f"checkpoint-{step}",
            weights,
            metadata=lineage(job, data, trained),
            model_type=f"{job.config.method}-checkpoint",
            step=step,
        )
        job.run.log_checkpoint(model, metrics, dataset=data.eval)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # MLflow has it, or the outbox a copy
