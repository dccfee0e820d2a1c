"""How processes share weights, gradients and optimizer: the settings of accelerate and DeepSpeed for each strategy."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mlflow_ft.config.launch import LaunchSection
from mlflow_ft.config.schema import Config
from mlflow_ft.engine import ranks
from mlflow_ft.errors import ConfigError

FOLDER = Path(__file__).parent
"""Has the shipped configuration of DeepSpeed for each of its strategies."""
DDP_ONLY = ("ppo", "grpo", "rloo")
"""Methods that generate while they train."""
FSDP = (
    "--use_fsdp",
    "--fsdp_version=2",
    "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
    "--fsdp_reshard_after_forward=true",
    "--fsdp_state_dict_type=FULL_STATE_DICT",
    "--fsdp_cpu_ram_efficient_loading=false",
)
"""Arguments of accelerate's launcher: FSDP2, one unit for each layer of the model."""
OURS = ("ACCELERATE_USE_", "FSDP_", "ACCELERATE_DEEPSPEED_")
"""Prefixes of the variables through which accelerate passes a strategy on to the processes."""


def deepspeed_file(settings: LaunchSection) -> Path:
    """The DeepSpeed configuration of a strategy: the user's, or the shipped one."""
    shipped = FOLDER / f"{settings.strategy}{'-offload' if settings.cpu_offload else ''}.json"
    return (settings.deepspeed_config or shipped).expanduser()


def arguments(settings: LaunchSection) -> list[str]:
    """The strategy as arguments of `accelerate launch`."""
    if settings.strategy == "ddp":
        return ["--multi_gpu"]
    if settings.strategy == "fsdp":
        return [*FSDP, f"--fsdp_offload_params={str(settings.cpu_offload).lower()}"]
    file = str(deepspeed_file(settings).resolve())
    return ["--use_deepspeed", "--deepspeed_config_file", file, "--deepspeed_multinode_launcher", "standard"]


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Arguments as accelerate's launcher takes them."""
    from accelerate.commands.launch import launch_command_parser

    parsed: argparse.Namespace = launch_command_parser().parse_args(arguments)
    parsed.mixed_precision = parsed.mixed_precision or "no"  # the trainer sets it
    parsed.dynamo_backend = parsed.dynamo_backend or "no"
    parsed.num_cpu_threads_per_process = parsed.num_cpu_threads_per_process or threads(parsed)
    parsed.use_cpu = not torch.cuda.is_available()
    parsed.deepspeed_fields_from_accelerate_config = ""
    return parsed


def threads(parsed: argparse.Namespace) -> int:
    """The threads of a process: the user's number, or an equal share of the cores."""
    if (number := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return int(number)
    here = max(1, int(parsed.num_processes or 1) // int(parsed.num_machines or 1))
    return max(1, len(os.sched_getaffinity(0)) // here)


def apply(settings: LaunchSection, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of the strategy in a process that someone else started (torchrun, srun)."""
    if settings.strategy == "ddp" or any(environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED")):
        return
    environ.update(variables(settings))


def variables(settings: LaunchSection) -> Mapping[str, str]:
    """The variables through which accelerate passes the strategy on."""
    from accelerate.utils import launch

    namespace = parsed([*arguments(settings), "--num_processes=2", "--num_machines=1", "--main_process_port=0", "x.py"])
    if settings.strategy == "fsdp":
        set_there: Mapping[str, str] = launch.prepare_multi_gpu_env(namespace)
    else:
        _, set_there = launch.prepare_deepspeed_cmd_env(namespace)
    return {name: value for name, value in set_there.items() if name.startswith(OURS)}


def refused(config: Config, *, learned_prompt: bool) -> str | None:
    """Why a strategy cannot train this model here, and a remedy; None if it can."""
    reason = misfit(config, learned_prompt=learned_prompt)
    return reason or (without_deepspeed(config.launch) if config.launch.own_engine else None)


def without_deepspeed(settings: LaunchSection) -> str | None:
    """Why DeepSpeed cannot be used; None if it can."""
    file = deepspeed_file(settings)
    if not file.is_file():
        return f"launch.deepspeed_config: there is no file {file}"
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"launch.deepspeed_config: {file} is not JSON: {error}"
    return None if find_spec("deepspeed") else "DeepSpeed is not installed: pip install 'mlflow-ft[deepspeed]'"


def misfit(config: Config, *, learned_prompt: bool) -> str | None:
    """Why a strategy cannot train this model on any machine, and a remedy; None if it can."""
    strategy, quantize = config.launch.strategy, config.model.quantize
    if strategy == "ddp":
        return None
    if config.method in DDP_ONLY:
        return f"method {config.method} trains with ddp only, not with {strategy}; use --launch.strategy ddp"
    if config.launch.sharded and quantize != "none":
        return (
            f"a base quantised to {quantize} cannot be sharded ({strategy}); use --launch.strategy ddp, in which each "
            "process holds the quantised base, or --model.quantize none"
        )
    if config.launch.sharded and learned_prompt:
        return (
            f"adapter {config.adapter.kind} comes before the text and cannot be sharded ({strategy}); use "
            "--launch.strategy ddp, or --adapter.kind lora"
        )
    return None


def on_cpus(settings: LaunchSection) -> None:
    """Let accelerate spread weights on CPUs too, to try it without GPUs: torch and DeepSpeed can, it asks for GPUs.

    Called between the trainer's arguments, which set up accelerate's state, and the trainer.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if ranks.size() == 1 or torch.cuda.is_available():
        return
    if settings.strategy == "fsdp":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    elif settings.own_engine:
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED


def check(config: Config, accelerator: Any) -> None:
    """Refuse if other processes, or another strategy, came up than was asked for: accelerate falls back in silence.

    Raises:
        ConfigError: the processes do not train together, or not in this way.
    """
    kind, strategy = str(accelerator.distributed_type.value), config.launch.strategy
    alone = ranks.size() == 1
    wanted = {"fsdp": "FSDP", "ddp": "NO" if alone else "MULTI_"}.get(strategy, "DEEPSPEED")
    if accelerator.num_processes == ranks.size() and (kind.startswith(wanted) or alone):
        return
    raise ConfigError(
        f"{ranks.size()} processes were to train with {strategy}, but accelerate set up {accelerator.num_processes} "
        f"with {kind}",
        hint="unset ACCELERATE_* variables, or use --launch.strategy ddp",
    )
