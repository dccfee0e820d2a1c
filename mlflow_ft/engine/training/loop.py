"""What every training through TRL has in common: its settings, its callbacks, and what is left on disk afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from mlflow_ft.engine import hardware, options
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.judging import reference
from mlflow_ft.engine.models import fused_head, loading, neighbours, routers
from mlflow_ft.engine.models.neighbours import Check, NeighboursCallback
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.engine.training import starts
from mlflow_ft.engine.training.adalora import AllocateCallback, is_adalora
from mlflow_ft.engine.training.callbacks import JournalCallback, WatchCallback
from mlflow_ft.engine.training.checkpoints import CheckpointCallback
from mlflow_ft.engine.training.first_step import GradientCallback
from mlflow_ft.engine.training.samples import SamplesCallback
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.values import Data, Job, Model, Trained

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)
REFERENCE = "ref"
"""The name under which TRL keeps a frozen copy of an adapter, as the reference."""


def arguments(kind: type[ArgumentsT], job: Job, folder: Path, own: dict[str, Any]) -> ArgumentsT:
    """The trainer's settings: the user's, and those that keep TRL from doing what is done already.

    `kind` is TRL's config class, `own` what is set for this method; `objective.options` add to them.

    Raises:
        ConfigError: the class does not know an option, or refuses a value.
    """
    settings = job.config.training
    dtype = hardware.compute_dtype(job.config.model.dtype)
    common: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": settings.num_train_epochs,
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": job.config.evaluation.per_device_eval_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "activation_checkpointing": hardware.checkpointing(job.config),
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "optim": hardware.optimizer(job.config),
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": settings.eval_steps,
        "eval_on_start": True,
        "save_strategy": "no",
        "seed": job.config.run.seed,
        "data_seed": job.config.run.seed,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),  # transformers refuses bfloat16 on a CPU that was not asked for
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    ours = common | own
    more = options.typed(job.config.objective.options, kind, section="objective", ours=ours)
    found: ArgumentsT = options.made(kind, ours | more, section="objective")
    return found


def objective(job: Job, *names: str) -> dict[str, Any]:
    """The fields of `objective` by name; those that were not given keep TRL's own default."""
    values = {name: getattr(job.config.objective, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def run(
    job: Job,
    data: Data,
    model: Model,
    make: Callable[[list[TrainerCallback]], Any],
    *,
    judges: Sequence[LoadedReward] = (),
    check: Callable[[Job, Data, Any], Check] = neighbours.padded,
    fused: float | None = None,
) -> Trained:
    """Train with the trainer that `make` builds around the callbacks, and keep what was trained.

    `judges` say of the answers that are sampled at every evaluation how good they are; `check` makes, of job, data and
    trainer, what proves before the first step that rows do not change each other. `fused` is the temperature at which
    TRL's own output layer scores tokens; None where the trainer does not go through it.

    Raises:
        RefusedError: the loss is no number. StoppedError: a signal came; the step in progress was finished.
        ConfigError: TRL refuses the settings.
    """
    with ExitStack() as bars, job.run.deferring_stop(), refusals_of_trl(job):
        with routers.wanted(model.module):
            trainer = make(callbacks(job, data, model.module, bars, judges=judges))
        checks = [check(job, data, trainer)]
        if fused is not None:
            checks.append(fused_head.proof(job, data, temperature=fused))
        trainer.add_callback(NeighboursCallback(*checks))
        routers.settle(trainer, model.module, job.progress, fused=fused is not None)
        trainer.remove_callback(PrinterCallback)  # stdout belongs to machines
        loading.as_float32(trainer.model)  # TRL casts the adapters of a quantised base to bfloat16
        result = trainer.train()
    return keep(job, data, model, steps=result.global_step, loss=float(result.training_loss))


def callbacks(
    job: Job, data: Data, module: Any, bars: ExitStack, *, judges: Sequence[LoadedReward] = (), tells: bool = True
) -> list[TrainerCallback]:
    """What happens beside the steps of any training; of several processes one alone `tells` of it."""
    found: list[TrainerCallback] = []
    if tells:
        found += [JournalCallback(job, data.eval), WatchCallback(job, bars)]
        found += [SamplesCallback(job, data, bars, judges=judges)]
        found += [CheckpointCallback(job.keep_checkpoint)] if job.keep_checkpoint else []
    found += [GradientCallback(zero_is_right=bool(judges))]
    if is_adalora(module):
        found += [AllocateCallback(job)]
    for more in job.plugins.hook.training_callbacks(job=job):
        found.extend(more)
    return found


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the bars of `datasets` off the terminal."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def refusals_of_trl(job: Job) -> Iterator[None]:
    """Tell in a sentence what TRL finds wrong with the settings; some of it shows in the first step only."""
    try:
        yield
    except (ValueError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"the trainer of {job.config.method} rejects the settings: {brief(error)}",
            hint="see the settings objective, adapter and model.quantize",
        ) from error


def keep(job: Job, data: Data, model: Model, *, steps: int, loss: float) -> Trained:
    """Save the trained weights, the tokenizer and the reference logits of the model as it is in memory."""
    folder = job.folder / "train"
    module = model.module.eval()
    adapter = hasattr(module, "peft_config")
    if adapter and REFERENCE in module.peft_config:
        module.delete_adapter(REFERENCE)
    target = folder / ("adapter" if adapter else "model")
    module.config.use_cache = True
    with quiet_transformers():
        if adapter:
            starts.save(module, target, beginning=job.folder)
        else:
            module.save_pretrained(target)
    data.tokenizer.save_pretrained(target)
    reference.keep(module, data, folder / "reference.safetensors")
    metrics = {
        "train/steps": float(steps),
        "train/mean_loss": loss,
        "model/trainable_weights": float(model.trainable),
        "model/weights": float(model.total),
    }
    return Trained(folder=folder, base=model.base, metrics=metrics)
