"""Stage 3: load the model, train it with the method's function, and write the adapter or model to disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mlflow_ft.errors import RefusedError
from mlflow_ft.hashes import file_hash
from mlflow_ft.job import Job
from mlflow_ft.stages import batch_size, checkpoints, done, following, leftovers, memory, model, rehearsal
from mlflow_ft.values import BaseModel, Chosen, Data, Trained

FINDINGS, STOPPED, CHOSEN = (
    f"mlflow_ft.{name}" for name in ("training_findings", "stopped_early", "chosen_checkpoint")
)
"""Tags of a run: problems that did not end its training, why it ended early, the checkpoint that was kept."""
WEIGHTS_FILE = "train/weights.json"
"""The artifact with the sha256 of every trained weight file, by its path in the stage's folder."""


def train(job: Job, data: Data, base: BaseModel) -> tuple[Job, Trained]:
    """Train, and mark the stage's folder complete when everything is on disk; a complete training is not repeated.

    A resumed job continues from its checkpoint. Also returns the job, with the batch size in numbers.

    Raises:
        RefusedError: no step was made.
    """
    if (result := done.result(job.folder / "train")) is not None:
        return job, _recorded(job, base, result)
    from mlflow_ft.engine import ranks

    leftovers.remove_checkpoints(job)
    ranks.call(following.TRAIN)
    job, trained = _in_memory(job, data, base)
    if trained.metrics.get("train/steps") == 0:
        raise RefusedError(
            "the training ended without a step: nothing was learned, so nothing is packaged",
            hint="a batch may take more rows than there are: see training.per_device_train_batch_size",
        )
    job.run.metrics(trained.metrics)
    job.run.set_tags(_tags(trained))
    described = {name: str(value) for name, value in dataclasses.asdict(base).items()}
    weights = weight_hashes(trained)
    result = {
        "base": described,
        "metrics": dict(trained.metrics),
        "findings": list(trained.findings),
        "stopped": trained.stopped,
        "chosen": dataclasses.asdict(trained.chosen) if trained.chosen else None,
    }
    done.finish(trained.folder, result | {"weights": weights})
    job.run.artifact_text(json.dumps(weights, indent=2), WEIGHTS_FILE)
    return job, trained


def _tags(trained: Trained) -> dict[str, str]:
    """What happened in the training, for people who look at the run."""
    tags = {
        FINDINGS: "; ".join(trained.findings),
        STOPPED: trained.stopped,
        CHOSEN: str(trained.chosen or ""),
    }
    return {name: text for name, text in tags.items() if text}


def _in_memory(job: Job, data: Data, base: BaseModel) -> tuple[Job, Trained]:
    """Train; with a batch size of `auto`, with a smaller one if the longest batch does not fit.

    Raises:
        LongestBatchError: the longest batch does not fit.
    """
    from mlflow_ft.engine.training.longest_batch import LongestBatchError

    while True:
        try:
            return job, _once(job, data, base)
        except LongestBatchError as error:
            smaller = batch_size.smaller(job)
            if smaller is None:
                raise
            job.progress.warn(error.message)
        job = smaller


def _once(job: Job, data: Data, base: BaseModel) -> Trained:
    with memory.measured(job, data, base):
        loaded = model.load(job, data, base)
        rehearsal.rehearse(job, data, loaded)
        job.run.begin("train")
        for _ in job.plugins.ask("before_train", job=job, data=data, model=loaded):
            pass  # each may veto
        job = checkpoints.with_checkpoints(job, data, base)
        return job.registry.trainers[job.config.method].train(job, data, loaded)


def _recorded(job: Job, base: BaseModel, result: Mapping[str, Any]) -> Trained:
    """What a complete training left on disk."""
    job.progress.say(f"trained already, for {result['metrics'].get('train/steps', 0):.0f} steps")
    return Trained(
        folder=job.folder / "train",
        base=base,
        metrics=result["metrics"],
        findings=tuple(result.get("findings") or ()),
        stopped=result.get("stopped") or "",
        chosen=Chosen(**result["chosen"]) if result.get("chosen") else None,
    )


def weight_hashes(trained: Trained) -> dict[str, str]:
    """The sha256 of every trained weight file, by its path in the folder: `adapter/adapter_model.safetensors` ..."""
    files = sorted((trained.adapter or trained.model).rglob("*.safetensors"))
    return {file.relative_to(trained.folder).as_posix(): file_hash(file) for file in files}
