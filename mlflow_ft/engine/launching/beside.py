"""The trials of a sweep on one machine: a process beside this one for each, so that its memory is freed at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from mlflow_ft.errors import ConfigError
from mlflow_ft.values import Places, Process, Trials


@contextmanager
def trials(asked: Trials) -> Iterator[Places]:
    """One trial after another, or `workers` at once, each with its own GPU.

    Raises:
        ConfigError: CPUs or GPUs are asked for, which only a cluster gives out.
    """
    for name, value in {"cpus": asked.cpus, "gpus": asked.gpus}.items():
        if value is not None:
            raise ConfigError(
                f"--{name}-per-trial: the trials of one machine share its CPUs and take its GPUs in turn",
                hint="leave it out; a cluster gives them out: --launch.launcher ray",
            )
    yield Places(start=start, shares=shares(asked.workers or 1))


def start(arguments: Sequence[str], variables: Mapping[str, str]) -> Process:
    """Start the command in a process of its own, which a Ctrl-C in the terminal does not reach."""
    command = [sys.executable, "-m", "mlflow_ft", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(variables), start_new_session=True)


def shares(workers: int) -> list[dict[str, str]]:
    """For each worker, the environment variables that give it a share of the machine: GPUs in turn, CPU threads."""
    if workers == 1:
        return [{}]
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = visible if len(visible) == count else [str(number) for number in range(count)]
    own = [{"CUDA_VISIBLE_DEVICES": gpus[number % count]} if count else {} for number in range(workers)]
    threads = (
        {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    )
    return [share | threads for share in own]
