"""Stage 3: load the model, train it with the method's function, and write the adapter or model to disk."""

from __future__ import annotations

import dataclasses

from mlflow_ft.job import Job
from mlflow_ft.stages import checkpoints, done, model, rehearsal
from mlflow_ft.values import BaseModel, Data, Trained


def train(job: Job, data: Data, base: BaseModel) -> Trained:
    """Train, and mark the stage's folder complete when everything is on disk."""
    loaded = model.load(job, data, base)
    rehearsal.rehearse(job, data, loaded)
    job.run.begin("train")
    job.plugins.hook.before_train(job=job, data=data, model=loaded)
    job = checkpoints.with_checkpoints(job, data, base)
    trained = job.registry.trainers[job.config.method].train(job, data, loaded)
    job.run.metrics(trained.metrics)
    if trained.findings:
        job.run.set_tags({"mlflow_ft.training_findings": "; ".join(trained.findings)})
    described = {name: str(value) for name, value in dataclasses.asdict(base).items()}
    result = {"base": described, "metrics": dict(trained.metrics), "findings": list(trained.findings)}
    done.finish(trained.folder, result)
    return trained
