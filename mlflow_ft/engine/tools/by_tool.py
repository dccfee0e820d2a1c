"""A whole training by another tool: hand over, run, report, take back, prove, keep.

    environment = environments.find_or_make("sometool", ["sometool==1.0"], progress=job.progress)
    tool = by_tool.Tool(environment=environment, script=Path("in_sometool.py"), settings=settings_of)
    return by_tool.train(job, data, model, tool)

The script runs in the environment of the tool, where nothing of ours is. Its globals have `request["settings"]` and
`callback()`. It gives the callback to the tool's trainer, one of transformers', and saves the adapter in `work.output`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.models import own_quantization
from mlflow_ft.engine.tools import handover, process
from mlflow_ft.engine.tools.mirror import Mirror
from mlflow_ft.engine.training import loop
from mlflow_ft.errors import ConfigError
from mlflow_ft.values import Data, Job, Model, Trained


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the tool works on; all paths are absolute."""

    folder: Path
    """The tool's own, in the run's folder."""
    base: Path
    """The base model, as transformers reads it."""
    rows: Path
    """Parquet: input_ids, attention_mask, labels."""
    held_out: Path
    adapter: Path
    """The adapter to train, untrained, in PEFT's format."""
    tokenizer: Path
    output: Path
    """Where the trained adapter belongs; checkpoints are in it."""
    checkpoint: Path | None
    """The checkpoint to continue from."""
    values: Mapping[str, Any]
    """Our settings by full path, with every `auto` and every share resolved; `training.warmup_steps` is a number."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool, ready to train."""

    environment: Environment
    script: Path
    """Runs in its environment; see `inside` for its globals."""
    settings: Callable[[Work], Mapping[str, Any]]
    """The tool's own settings, plain JSON values; its script finds them in `request["settings"]`."""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.environment.name


def train(job: Job, data: Data, model: Model, tool: Tool) -> Trained:
    """Train the model's adapter with a tool, and save it as our own methods do.

    Raises:
        ProcessError: the tool failed. RefusedError: it would train something else, the loss is NaN or infinite, or its
        adapter is not what it trained. StoppedError: a signal arrived; the tool has ended.
    """
    if own := own_quantization.of(model.base.path):
        raise ConfigError(
            f"{tool.name}: the base's files are already in {own.description}, which is not handed over",
            hint="train with the method lora, or on the base in full precision",
        )
    args = _arguments(job)
    work = _hand_over(job, data, model, tool.name, args)
    request: dict[str, Any] = {
        "script": str(tool.script),
        "settings": dict(tool.settings(work)),
        "expected": handover.expected(model.module, data),
        "save": _save(job, work.values["training.max_steps"]),
        "compared": handover.compared(data),
        "logits": str(work.folder / "logits.safetensors"),
    }
    job.run.artifact_text(json.dumps(request["settings"], indent=2), f"{tool.name}/settings.json")
    job.run.artifact_text(json.dumps(dict(tool.environment.packages), indent=2), f"{tool.name}/packages.json")
    with ExitStack() as bars, job.run.deferring_stop():
        mirror = Mirror(job, data, model, args=args, bars=bars)
        with handover.put_aside(model.module):
            job.progress.say(f"{tool.name} starts in its environment: {tool.environment.python}")
            process.run(
                tool.environment,
                request,
                folder=work.folder,
                see=mirror.see,
                stopping=lambda: job.run.stopping,
                finishing=lambda: mirror.stopping,
                variables={**_one_gpu(), **tool.variables},
            )
    job.run.artifact(work.folder / process.LOG, tool.name)
    handover.take(model.module, work.output, tool=tool.name)
    agreed = handover.agree(job, model.module, request["compared"], Path(request["logits"]), tool=tool.name)
    trained = loop.keep(job, data, model, steps=mirror.state.global_step, loss=mirror.mean_loss)
    shutil.rmtree(work.folder)  # the adapter is kept, and checkpoints and rows are not needed any more
    return dataclasses.replace(trained, metrics={**trained.metrics, **agreed})


def _arguments(job: Job) -> TrainingArguments:
    """The `training` section as our own methods read it; `objective.options` has the tool's own settings."""
    objective = job.config.objective.model_copy(update={"options": None})
    config = job.config.model_copy(update={"objective": objective})
    whole: Any = job
    without = dataclasses.replace(whole, config=config)
    return loop.arguments(TrainingArguments, without, job.folder / "train", {})


def _hand_over(job: Job, data: Data, model: Model, name: str, args: TrainingArguments) -> Work:
    folder = (job.folder / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(
        folder=folder,
        base=model.base.path.absolute(),
        rows=folder / "train.parquet",
        held_out=folder / "eval.parquet",
        adapter=folder / "start",
        tokenizer=folder / "tokenizer",
        output=folder / "output",
        checkpoint=latest(folder / "output") if job.resume else None,
        values=resolved(job, args, rows=len(data.train.rows)),
    )
    handover.write_rows(data.train, work.rows)
    handover.write_rows(data.eval, work.held_out)
    handover.write_adapter(model.module, work.adapter, work.base)
    data.tokenizer.save_pretrained(work.tokenizer)
    return work


def resolved(job: Job, args: TrainingArguments, *, rows: int) -> dict[str, Any]:
    """Our settings by full path, with every `auto` and every share resolved."""
    batches = math.ceil(rows / args.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    every = job.config.training.eval_steps
    every = every if every >= 1 else math.ceil(every * steps)
    return job.config.flat() | {
        "training.max_steps": steps,
        "training.eval_steps": int(every),
        "training.warmup_steps": args.get_warmup_steps(steps),
        "training.per_device_train_batch_size": args.per_device_train_batch_size,
        "training.gradient_checkpointing": args.gradient_checkpointing or args.activation_checkpointing,
        "training.optim": str(getattr(args.optim, "value", args.optim)),
        "model.dtype": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
    }


def _save(job: Job, steps: int) -> dict[str, float]:
    number, unit = job.config.training.save_every
    if unit == "minutes":
        return {"minutes": number}
    return {"steps": max(1, math.ceil(number * steps) if unit == "share" else int(number))}


def latest(output: Path) -> Path | None:
    """The last complete checkpoint of transformers' trainer in a folder: it writes its state last."""
    found = {
        int(state.parent.name.rpartition("-")[2]): state.parent
        for state in output.glob("checkpoint-*/trainer_state.json")
    }
    return found[max(found)] if found else None


def _one_gpu() -> dict[str, str]:
    """Show the tool one GPU: with several, transformers would spread each batch over them."""
    if torch.cuda.device_count() < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "CUDA_VISIBLE_DEVICES": seen.split(",")[torch.cuda.current_device()]
        if seen
        else str(torch.cuda.current_device())
    }
