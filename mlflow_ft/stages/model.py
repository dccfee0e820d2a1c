"""Stage 2: the base model, quantised or not, with its adapter on."""

from __future__ import annotations

from dataclasses import replace

from mlflow_ft.job import BaseModel, Data, Job, Model
from mlflow_ft.stages import init_from, start

SPACE = 4
"""Bytes on the disk for each byte of the base model: the trained or merged model, its copy in MLflow, that copy read
back, and air."""

EXPERTS = "mlflow_ft.experts"
"""The tag that says what trains of a mixture of experts."""


def find(job: Job) -> BaseModel:
    """Find the base model's folder, fetching it first where that is needed, and check that the disk can hold it."""
    job.run.begin("model")
    base = replace(init_from.find(job.config, job.progress), task=job.task)
    start.check_exports(job.config, job.registry, base.path)
    if base.start:
        from mlflow_ft.engine import skeleton

        skeleton.check(base.path, base.start, task=base.task)
    job.run.set_tags(
        {
            "mlflow_ft.base_model": base.name_or_path,
            "mlflow_ft.base_revision": base.revision,
            "mlflow_ft.base_origin": base.origin,
        }
    )
    start.check_space(job, SPACE * sum(file.stat().st_size for file in base.path.glob("*.safetensors")))
    job.progress.say(f"model: {base.name} ({base.origin})")
    return base


def load(job: Job, data: Data, base: BaseModel) -> Model:
    """Load the base model for training."""
    from mlflow_ft.engine import experts, hardware, models, text_part

    job.run.begin("model")
    if parts := text_part.of(base.path, task=base.task):
        job.progress.say(parts.said(base.name, adapter=job.config.adapter.kind != "none"))
    with job.progress.bar("load model"):
        model = models.prepare(job, data, base)
    device = hardware.describe()
    job.run.set_tags({"mlflow_ft.device": device})
    share = model.trainable / model.total
    job.progress.say(
        f"{device}; {model.total:,} weights (quantised: {job.config.model.quantize}), "
        f"{model.trainable:,} train ({share:.1%})"
    )
    config = job.config
    if told := experts.told(model.module, by_name=config.adapter.kind == "lora", quantize=config.model.quantize):
        job.run.set_tags({EXPERTS: told})
        job.progress.say(told)
    return model
