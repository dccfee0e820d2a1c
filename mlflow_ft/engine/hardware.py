"""Settings that depend on this machine: the device, the type to compute in, the optimizer."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from mlflow_ft.config.launch import LaunchSection
from mlflow_ft.config.schema import Config
from mlflow_ft.processes import place
from mlflow_ft.records import Trainer
from mlflow_ft.values import Hardware

AT_ONCE = 1024
"""Tokens of a pass on a CPU, where products of matrices are as fast with 1,000 as with 4,000."""
SELECTIVE = "selective"
"""The value of `training.gradient_checkpointing` with which no matrix is multiplied again."""
STATUS = Path("/proc/self/status")
ANSWER_TOKENS = 512
"""For each row of a batch of answers asked for, tokens of prompts and answers that a CPU generates at the same time."""


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def gpus() -> int:
    """The GPUs of this machine that this process may use."""
    return torch.cuda.device_count()


def processes(settings: LaunchSection) -> int:
    """The processes on all machines that a configuration asks for: one for each GPU when it gives no number."""
    return settings.num_processes or max(1, gpus()) * settings.num_machines


def compute_dtype(choice: str) -> torch.dtype:
    """The named type; for `auto`, bfloat16 on a GPU that supports it and float32 elsewhere.

    A CPU without bfloat16 units is about three times slower in bfloat16 than in float32.
    """
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[choice]
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if on_gpu else torch.float32


def held_dtype(config: Config) -> torch.dtype:
    """The type of the weights in memory: the compute type, but float32 in full fine-tuning, and for shards.

    A step of full fine-tuning changes a weight by about the learning rate, which bfloat16 rounds away for most of
    them; the trainer still computes in the lower precision (mixed precision). A shard holds weights of one type only,
    and an adapter has float32.
    """
    exact = config.adapter.kind == "none" or config.launch.sharded
    return torch.float32 if exact else compute_dtype(config.model.dtype)


def optimizer(config: Config, *, gpu: bool | None = None) -> str:
    """The optimizer's name in transformers; `auto` saves memory on a GPU that holds a quantised base.

    `gpu` says whether it trains on a GPU, if not on this machine.
    """
    if config.training.optim != "auto":
        return config.training.optim
    paged = _on_gpu(gpu=gpu) and config.model.quantize != "none"
    return "paged_adamw_8bit" if paged else "adamw_torch_fused"


def checkpointing(config: Config, *, gpu: bool | None = None) -> bool:
    """Whether the activations of whole layers are computed again, which takes about half as much time again.

    `gpu` says whether it trains on a GPU, if not on this machine.
    """
    choice = config.training.gradient_checkpointing
    if choice is not None:
        return choice is True
    return _on_gpu(gpu=gpu)


def recomputing(config: Config, *, gpu: bool | None = None) -> bool:
    """Whether activations that cost little are computed again; not with shares of weights, which are not there then."""
    choice = config.training.gradient_checkpointing
    return _as_written(config) and (choice == SELECTIVE or (choice is None and not checkpointing(config, gpu=gpu)))


def tokens_at_once(config: Config, trainer: Trainer, *, gpu: bool | None = None) -> int | None:
    """Tokens that a forward and backward pass has at most; None for those of a whole batch.

    Methods that can (`Trainer.in_parts`) compute a batch in parts on a CPU (`training.parts`), but not in several
    processes or with DeepSpeed, which exchange gradients in a backward pass, nor with NEFTune, whose noise depends on
    the length of the batch.
    """
    launch = config.launch
    if launch.launcher != "local" or place().size > 1 or launch.sharded or launch.own_engine:
        return None
    whole = "neftune_noise_alpha" in (config.objective.options or ()) or not trainer.in_parts(config)
    return None if whole or _on_gpu(gpu=gpu) else AT_ONCE


def answers_at_once(batch_size: int, tokens: int, *, gpu: bool | None = None) -> int:
    """Answers that are generated at the same time; each has, with its prompt, at most so many `tokens`.

    On a CPU a step takes about as long as reading the weights, whatever the batch: so short answers are as many as have
    `ANSWER_TOKENS` for each row of the `batch_size` that was asked for.
    """
    if _on_gpu(gpu=gpu):
        return batch_size
    return max(batch_size, batch_size * ANSWER_TOKENS // max(1, tokens))


def fused(config: Config) -> bool:
    """Whether LoRA's part of layers, and gated MLPs, are computed in one step; not with shares of weights."""
    return config.adapter.fused and _as_written(config)


def _on_gpu(*, gpu: bool | None) -> bool:
    """Whether it is about a GPU; as this machine has, if None."""
    return torch.cuda.is_available() if gpu is None else gpu


def _as_written(config: Config) -> bool:
    """Whether layers have all their weights, and run as they are written."""
    return not (config.launch.sharded or config.launch.own_engine or config.training.compile)


def describe() -> str:
    """The device in one line, for tags and the terminal."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads"


def installed() -> Hardware:
    """The devices of this machine that a training can use; of unequal GPUs, the memory of the smallest."""
    if not torch.cuda.is_available():
        return cpu()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    smallest = min(gpus, key=lambda gpu: gpu.total_memory)
    return Hardware(gpus=len(gpus), memory=smallest.total_memory / 1e9, name=smallest.name)


def cpu() -> Hardware:
    """This machine without its GPUs."""
    return Hardware(gpus=0, memory=psutil.virtual_memory().total / 1e9, cores=psutil.cpu_count(logical=False) or 1)


def in_use() -> int:
    """Bytes of the GPU that torch has given out, or of the machine that this process holds."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def most_in_use() -> int:
    """The most bytes that there were of `in_use` (since it was reset, `memory.measuring`)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(peak[1]) * 1024
    return in_use()
