"""`training.per_device_train_batch_size: auto`: as many rows as fit into memory, with the rows of a step unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.config.training import AUTO, USUAL_BATCH
from mlflow_ft.job import Job
from mlflow_ft.stages import memory
from mlflow_ft.values import BaseModel, Data

if TYPE_CHECKING:
    from mlflow_ft.stages.memory import Room

SETTING = "training.per_device_train_batch_size"
TAG = "mlflow_ft.batch_size"
"""Tag with the chosen numbers."""


def settle(job: Job, data: Data, base: BaseModel) -> Job:
    """The job with a batch size in numbers: for `auto` the largest that fits by estimate.

    The rows of a step stay the same: a smaller batch has more forward passes per step.
    """
    training = job.config.training
    if training.per_device_train_batch_size != AUTO:
        return job
    rows = USUAL_BATCH * training.gradient_accumulation_steps
    here = memory.room(job.config, job.run.read().info.experiment_id)
    if here.calibration.runs:
        job.progress.say(f"memory: {here.calibration}")
    sizes = [size for size in range(rows, 1, -1) if rows % size == 0]
    size = next((size for size in sizes if _fits(job, data, base, size, here)), 1)
    return _with(job, size, rows // size)


def smaller(job: Job) -> Job | None:
    """The job with the next smaller batch size, if it was chosen, and this is the only process; else None."""
    from mlflow_ft.engine import ranks

    training = job.config.training
    size, rows = training.batch_size, training.batch_size * training.gradient_accumulation_steps
    if size == 1 or ranks.size() > 1 or not job.config.origins.get(SETTING, "").startswith(AUTO):
        return None
    size = next(size for size in range(size - 1, 0, -1) if rows % size == 0)
    return _with(job, size, rows // size)


def _fits(job: Job, data: Data, base: BaseModel, size: int, here: Room) -> bool:
    """Whether the training fits by estimate; without one, only up to the usual size."""
    steps = USUAL_BATCH * job.config.training.gradient_accumulation_steps // size
    needs = memory.estimate_of_rows(job, data, base, batch=size, accumulation=steps)
    if needs is None:
        return size <= USUAL_BATCH
    return needs["training"].total * here.calibration.factor <= here.bytes


def _with(job: Job, size: int, steps: int) -> Job:
    """The job with a batch size in numbers, which the run and its output name."""
    chosen = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    origins = {**job.config.origins, **{f"training.{name}": f"{AUTO}: {SETTING}" for name in chosen}}
    training = job.config.training.model_copy(update=chosen)
    job = replace(job, config=job.config.model_copy(update={"training": training, "origins": origins}))
    told = f"{size} rows per forward pass, gradient_accumulation_steps {steps}"
    job.progress.say(f"{SETTING} {AUTO}: {told}, {size * steps} rows per step")
    job.run.log_config(job.config)
    job.run.set_tags({TAG: told})
    return job
