"""Stage 2: the base model, quantised or not, with its adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.errors import ModelError
from mlflow_ft.job import Job
from mlflow_ft.stages import fitting, init_from, space, start, unchanged
from mlflow_ft.values import BaseModel, Data, Model

if TYPE_CHECKING:
    from mlflow_ft.engine.models.own_quantization import Own

START_TAG = "mlflow_ft.start"
"""Tag with the adapter that is trained further and the sha256 over its weights."""


def find(job: Job) -> tuple[Job, BaseModel]:
    """Find the base model's folder, fetching it if needed, and check that the disk has room for the run.

    Also returns the job fitted to it; see `fitted`.
    """
    from mlflow_ft.engine import own_code
    from mlflow_ft.engine.models import generation, own_quantization
    from mlflow_ft.tracking.databases import local_folder

    job.run.begin("model")
    base = replace(init_from.find(job.config, job.progress), task=job.task)
    own_code.check_training(job.config, base)
    own = own_quantization.of(base.path)
    own_quantization.check_training(job.config, own)
    start.check_exports(job.config, job.registry, base.path)
    if base.start:
        from mlflow_ft.engine import hub
        from mlflow_ft.engine.models import skeleton

        skeleton.check(base.path, base.start, task=base.task)
        start_from = f"{base.start_uri} sha256:{hub.weights_hash(base.start)}"
        what = "the adapter that is trained further"
        unchanged.check(job, START_TAG, start_from, what=what, error=ModelError, hint="restore it")
        job.run.set_tags({START_TAG: start_from})
    hint = "restore the model"
    revision = "mlflow_ft.base_revision"
    unchanged.check(job, revision, base.revision, what=f"the base model {base.name}", error=ModelError, hint=hint)
    job.run.set_tags(
        {
            "mlflow_ft.base_model": base.name_or_path,
            "mlflow_ft.base_revision": base.revision,
            "mlflow_ft.base_origin": base.origin,
        }
    )
    artifacts = local_folder(job.run.read().info.artifact_uri)
    space.check(space.needs(job.config, job.registry, base.path, folder=job.folder, artifacts=artifacts))
    job.progress.say(f"model: {base.name} ({base.origin})")
    if own:
        _report_own(job, own)
    if text := generation.description(generation.read(base.path), base.path):
        job.progress.warn(text)
        job.run.set_tags({"mlflow_ft.generation_config": text})
    return fitted(job, base), base


def fitted(job: Job, base: BaseModel) -> Job:
    """The job with settings that fit the base; the run logs a changed configuration."""
    config = fitting.fitted(job.config, base, job.registry, job.progress)
    if config is job.config:
        return job
    job.run.log_config(config)
    return replace(job, config=config)


def _report_own(job: Job, own: Own) -> None:
    """Report how the files of a base are quantised, and how they are used."""
    from mlflow_ft.engine import hardware

    use = "they are read as plain weights"
    if own.held:
        dtype = str(hardware.held_dtype(job.config)).removeprefix("torch.")
        use = f"they are used unchanged, computing in {dtype}; a merge goes into the dequantised weights"
    job.progress.say(f"the base's files are in {own.description}: {use}")
    job.run.set_tags({"mlflow_ft.base_quantization": own.make})


def load(job: Job, data: Data, base: BaseModel) -> Model:
    """Load the base model for training."""
    from mlflow_ft.engine import hardware
    from mlflow_ft.engine.models import experts, own_quantization, text_part
    from mlflow_ft.engine.training import trainable

    job.run.begin("model")
    if parts := text_part.of(base.path, task=base.task):
        job.progress.say(parts.said(base.name, adapter=job.config.adapter.kind != "none"))
    with job.progress.bar("load model"):
        model = trainable.prepare(job, data, base)
    device = hardware.describe()
    job.run.set_tags({"mlflow_ft.device": device})
    share = model.trainable / model.total
    own = own_quantization.of(base.path)
    held = own.make if own and own.held else job.config.model.quantize
    job.progress.say(
        f"{device}; {model.total:,} weights (quantised: {held}), {model.trainable:,} trainable ({share:.1%})"
    )
    config = job.config
    by_name, quantize = config.adapter.kind == "lora", config.model.quantize
    all_linear = config.adapter.kind in ("lora", "dora") and config.adapter.target_modules == "all-linear"
    if summary := experts.summary(model.module, by_name=by_name, all_linear=all_linear, quantize=quantize):
        job.run.set_tags({"mlflow_ft.experts": summary})
        job.progress.say(summary)
    return model
