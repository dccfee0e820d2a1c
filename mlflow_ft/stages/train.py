"""Stage 3: load the model, train it by the method's own function, and leave adapter or model on disk."""

from __future__ import annotations

import dataclasses

from mlflow_ft.job import Job
from mlflow_ft.stages import checkpoints, done, model, rehearsal
from mlflow_ft.values import BaseModel, Data, Trained


def train(job: Job, data: Data, base: BaseModel) -> Trained:
    """Train, and mark the stage's folder complete when all of it is on disk."""
    loaded = model.load(job, data, base)
    rehearsal.rehearse(job, data, loaded)
    job.run.begin("train")
    job.plugins.hook.before_train(job=job, data=data, model=loaded)
    asked = checkpoints.with_checkpoints(job, data, base)
    trained = job.registry.trainers[job.config.method].train(asked, data, loaded)
    job.run.metrics(trained.metrics)
    if trained.findings:
        job.run.set_tags({"mlflow_ft.training_findings": "; ".join(trained.findings)})
    described = {name: str(value) for name, value in dataclasses.asdict(base).items()}
    noted = {"base": described, "metrics": dict(trained.metrics), "findings": list(trained.findings)}
    done.finish(trained.folder, noted)
    return trained
