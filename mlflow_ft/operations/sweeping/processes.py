"""The processes of a sweep: one for each trial, so that its memory is freed at the end, each with its own GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol


class Process(Protocol):
    """A command that runs beside this process."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""


Start = Callable[[Sequence[str], Mapping[str, str]], Process]
"""Starts `mlflow-ft ARGUMENTS` with these environment variables."""
STOP = signal.SIGTERM
"""Ends a trial after its current step, with a checkpoint."""


def start(arguments: Sequence[str], variables: Mapping[str, str]) -> Process:
    """Start the command in a process of its own, which a Ctrl-C in the terminal does not reach."""
    command = [sys.executable, "-m", "mlflow_ft", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(variables), start_new_session=True)


def devices(workers: int) -> list[dict[str, str]]:
    """For each worker, the environment variables that give it a share of the machine: GPUs in turn, CPU threads."""
    if workers == 1:
        return [{}]
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = visible if len(visible) == count else [str(number) for number in range(count)]
    shares = [{"CUDA_VISIBLE_DEVICES": gpus[number % count]} if count else {} for number in range(workers)]
    threads = (
        {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    )
    return [share | threads for share in shares]
