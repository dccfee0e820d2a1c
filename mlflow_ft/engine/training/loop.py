"""What every training with TRL shares: its settings, its callbacks, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from mlflow_ft.engine import hardware, options, ranks
from mlflow_ft.engine.checkpoints import resuming
from mlflow_ft.engine.checkpoints.best import put_back
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.judging import reference
from mlflow_ft.engine.launching import shards, strategy, zero
from mlflow_ft.engine.models import early_leave, fused_head, lean, liger, loading, routers, row_isolation
from mlflow_ft.engine.models.row_isolation import Check, NeighboursCallback
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.engine.training import (
    batching,
    even_batches,
    held_out,
    known_weights,
    longest_batch,
    other_trackers,
    starts,
    trainable,
)
from mlflow_ft.engine.training.adalora import AllocateCallback, is_adalora
from mlflow_ft.engine.training.callbacks import HeldOutLossCallback, JournalCallback, WatchCallback
from mlflow_ft.engine.training.checkpoints import CheckpointCallback
from mlflow_ft.engine.training.elsewhere import ELSEWHERE
from mlflow_ft.engine.training.first_step import GradientCallback
from mlflow_ft.engine.training.longest_batch import LongestBatchCallback
from mlflow_ft.engine.training.parts import InParts
from mlflow_ft.engine.training.samples import SamplesCallback
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.values import Data, Job, Model, Trained

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)
REFERENCE = "ref"
"""The name under which TRL keeps a frozen copy of an adapter, as the reference."""


def arguments(kind: type[ArgumentsT], job: Job, folder: Path, own: dict[str, Any]) -> ArgumentsT:
    """The trainer's settings: the user's, and those that keep TRL from repeating work that is already done.

    `kind` is TRL's config class; `own` are the method's own settings; `objective.options` add to them.

    Raises:
        ConfigError: the class does not have an option, or rejects a value.
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
        "per_device_train_batch_size": settings.batch_size,
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
        "use_cpu": not torch.cuda.is_available(),  # transformers refuses bfloat16 on a CPU unless this is set
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # the output layer, which the loss applies, would count as unused
    }
    ours = common | own
    more = options.typed(job.config.objective.options, kind, section="objective", ours=ours, elsewhere=ELSEWHERE)
    made: Any = options.made(kind, ours | more, section="objective")
    made.get_warmup_steps = partial(warm_up, settings.warmup_steps)
    arguments: ArgumentsT = made
    strategy.on_cpus(job.config.launch)
    zero.forget()  # until the trainer is made, which sets it again: a reference model is loaded whole
    return arguments


def warm_up(setting: float, steps: int) -> int:
    """The steps of warm-up: a number of them, or a share of all `steps` that leaves at least one.

    transformers rounds a share up, so that a training of one step would have a learning rate of 0.
    """
    return int(setting) if setting >= 1 else min(math.ceil(setting * steps), max(0, steps - 1))


def objective(job: Job, *names: str) -> dict[str, Any]:
    """The fields of `objective` by name, without unset ones, which keep TRL's defaults."""
    values = {name: getattr(job.config.objective, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def run(
    job: Job,
    data: Data,
    model: Model,
    make: Callable[[list[TrainerCallback]], Any],
    *,
    judges: Sequence[LoadedReward] = (),
    check: Callable[[Job, Data, Any], Check] = row_isolation.padded,
    fused: float | None = None,
    longest: longest_batch.Find = longest_batch.of_rows,
) -> Trained:
    """Train with the trainer that `make` builds from the callbacks, and save the result.

    `judges` score the answers sampled at every evaluation; `check` takes job, data and trainer, and returns a check,
    run before the first step, that rows do not affect each other. `fused` is the temperature at which TRL's own output
    layer scores tokens; None if the trainer does not use that layer. `longest` makes the batch that needs the most
    memory, which is tried before the first step.

    Raises:
        RefusedError: a NaN or infinite loss. StoppedError: a signal arrived; the current step was finished.
        ConfigError: TRL rejects the settings.
    """
    watch = held_out.callback(job)
    with ExitStack() as bars, job.run.deferring_stop(), refusals_of_trl(job):
        with routers.wanted(model.module):
            common = callbacks(job, data, model.module, bars, judges=judges, tells=ranks.leads())
            trainer = make([*common, *([watch] if watch else [])])
        strategy.check(job.config, trainer.accelerator)
        if isinstance(trainer, InParts):
            trainer.at_once = hardware.tokens_at_once(job.config, job.registry.trainers[job.config.method])
        even_batches.install(trainer, by_tokens=getattr(trainer, "by_tokens", False))
        if liger.wanted(job.config):
            liger.apply(trainer.model)
        less = {"fused": hardware.fused(job.config), "recomputing": hardware.recomputing(job.config)}
        bars.enter_context(lean.passes(trainer.model, **less, compiled=job.config.training.compile))
        arranged = batching.Batching(job, data, trainer)
        bars.callback(arranged.end)
        if judges and not (job.config.launch.sharded or job.config.launch.own_engine):
            bars.enter_context(early_leave.leaving_early(trainer.model))
        if not job.config.launch.sharded:  # a pass by one process alone would wait for the others' shares
            checks = [arranged.check, check(job, data, trainer)]
            if fused is not None:
                bars.enter_context(fused_head.on_learned_tokens())
                checks.append(fused_head.proof(job, data, temperature=fused))
            trainer.add_callback(NeighboursCallback(*checks))
            if not job.config.launch.own_engine:  # a backward pass there is a step
                trainer.add_callback(LongestBatchCallback(job, trainer, longest))
                bars.enter_context(known_weights.known(trainer.model))
        routers.settle(trainer, model.module, job.progress, fused=fused is not None)
        trainer.remove_callback(PrinterCallback)  # stdout is for programs
        loading.as_float32(trainer.model)  # TRL casts the adapters of a quantised base to bfloat16
        steps, loss = resuming.train(trainer, job)
        zero.forget()
        best = held_out.choose(job, watch, steps) if watch and not math.isnan(loss) else None
        if (job.config.launch.sharded or job.config.launch.own_engine) and not math.isnan(loss):
            model = _gathered(trainer, job, data, model, best.parts if best else None)
        elif best and best.parts:
            put_back(trainer, best.parts)
    trained = keep(job, data, model, steps=steps, loss=loss)
    return held_out.concluded(trained, watch, best) if watch else trained


def callbacks(
    job: Job, data: Data, module: Any, bars: ExitStack, *, judges: Sequence[LoadedReward] = (), tells: bool = True
) -> list[TrainerCallback]:
    """The callbacks of any training; with several processes only one reports (`tells`)."""
    callbacks: list[TrainerCallback] = []
    if tells:
        callbacks += [] if job.config.launch.sharded else [SamplesCallback(job, data, bars, judges=judges)]
        callbacks += [CheckpointCallback(job.keep_checkpoint)] if job.keep_checkpoint else []
        callbacks[:0] = reporting(job, data, bars)
    if not (job.config.launch.sharded or job.config.launch.own_engine):
        callbacks += [GradientCallback(zero_is_right=bool(judges))]
    if is_adalora(module):
        callbacks += [AllocateCallback(job)]
    return [*callbacks, *of_plugins(job)]


def reporting(job: Job, data: Data, bars: ExitStack) -> list[TrainerCallback]:
    """The callbacks that report a training and need no model: curves, progress, other trackers, a sweep's pruning."""
    return [
        JournalCallback(job, data.eval),
        WatchCallback(job, bars),
        *other_trackers.callbacks(job, bars),
        *([HeldOutLossCallback(job.watch_loss)] if job.watch_loss else []),
    ]


def of_plugins(job: Job) -> list[TrainerCallback]:
    """The callbacks of plugins.

    Raises:
        PluginError: a plugin returned something else.
    """
    callbacks: list[TrainerCallback] = []
    for name, more in job.plugins.ask("training_callbacks", job=job):
        if not isinstance(more, (list, tuple)) or not all(isinstance(one, TrainerCallback) for one in more):
            raise job.plugins.fault(name, f"training_callbacks returned {more!r}, not a list of TrainerCallback")
        callbacks.extend(more)
    return callbacks


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the progress bars of `datasets`."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def refusals_of_trl(job: Job) -> Iterator[None]:
    """Turn TRL's errors about settings into a ConfigError; some occur only in the first step."""
    try:
        yield
    except (ValueError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"the trainer of {job.config.method} rejects the settings: {brief(error)}",
            hint="see the settings training, objective, adapter and model.quantize",
        ) from error


def _gathered(trainer: Any, job: Job, data: Data, model: Model, chosen: dict[str, Any] | None) -> Model:
    """The trained model as a whole, in rank 0; its weights were spread over all processes.

    `chosen` are the parts of the checkpoint that it is to be, in rank 0; empty in the others, and None without one.
    """
    partly = job.config.launch.own_engine or chosen is not None
    if chosen is not None:
        state = chosen.get("weights", {})
    elif job.config.launch.own_engine:  # which casts weights to the type it computes in: the exact ones are its own
        trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        state = {name: shards.whole_weight(weight).cpu() for name, weight in trained.items()}
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not ranks.leads():
        return model
    whole = trainable.prepare(job, data, model.base)
    missing, unknown = whole.module.load_state_dict(state, strict=False)
    if partly:  # the rest is as the base has it
        learned = {name for name, weight in whole.module.named_parameters() if weight.requires_grad}
        missing = [name for name in missing if name in learned]
    if unknown or missing:
        raise RuntimeError(f"the trained weights do not fit the model: {[*unknown, *missing][:3]}")
    return whole


def keep(job: Job, data: Data, model: Model, *, steps: int, loss: float) -> Trained:
    """Save the trained weights, the tokenizer, and reference logits of the model in memory; rank 0 does."""
    folder = job.folder / "train"
    if not ranks.leads():
        return Trained(folder=folder, base=model.base, metrics={})
    module = model.module.eval()
    adapter = hasattr(module, "peft_config")
    if adapter and REFERENCE in module.peft_config:
        module.delete_adapter(REFERENCE)
    target = folder / ("adapter" if adapter else "model")
    module.config.use_cache = True
    with job.progress.bar("save the trained model"), quiet_transformers():
        if adapter:
            starts.save(module, target, beginning=job.folder)
        else:
            module.save_pretrained(target)
        data.tokenizer.save_pretrained(target)
    with job.progress.bar("reference logits and answers"):
        reference.keep(module, data, folder / "reference.safetensors")
    metrics = {
        "train/steps": float(steps),
        "train/mean_loss": loss,
        "model/trainable_weights": float(model.trainable),
        "model/weights": float(model.total),
    }
    return Trained(folder=folder, base=model.base, metrics=metrics)
