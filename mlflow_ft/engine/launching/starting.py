"""The launcher `accelerate`: processes on this machine, or one group on each of several machines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from mlflow_ft import processes
from mlflow_ft.config.launch import LaunchSection
from mlflow_ft.config.schema import Config
from mlflow_ft.engine.launching import agent, strategy
from mlflow_ft.errors import ProcessError, StoppedError
from mlflow_ft.values import Launch
from mlflow_ft.values.launch import result_file


def launch(launch: Launch) -> str:
    """Start the processes, wait until they have ended, and return the result of rank 0, "" on a machine without it.

    Raises:
        ProcessError: they ended without a result. StoppedError: a signal arrived, and they ended without one.
    """
    settings = launch.settings
    with tempfile.TemporaryDirectory(prefix="mlflow-ft-launch-") as folder:
        file = Path(folder) / "request.json"
        file.write_text(launch.request, encoding="utf-8")
        own = [sys.executable, "-m", "mlflow_ft.engine.launching.agent", str(file), str(os.getpid())]
        command = [*own, *arguments(settings, launch.processes)]
        process = subprocess.Popen(command, start_new_session=True)  # a Ctrl-C reaches it once, through this process
        with passing_signals(lambda _: process.send_signal(signal.SIGTERM)) as received:
            process.wait()
        result = result_file(file)
        if result.is_file():
            return result.read_text(encoding="utf-8")
        if received:
            raise StoppedError(received[0])
        if settings.machine_rank and process.returncode == 0:
            return ""
        failed = file.with_name(file.name + agent.FAILED)
        if failed.is_file():
            message, hint = json.loads(failed.read_text(encoding="utf-8"))
            raise ProcessError(message, hint=hint)
        ended = f"the processes ended without a result: exit code {process.returncode}"
        raise ProcessError(ended, hint=agent.LINES_ABOVE)


def arguments(settings: LaunchSection, number: int) -> list[str]:
    """What `accelerate launch` takes for these settings."""
    port = settings.main_process_port
    if port is None:
        port = 0 if settings.num_machines == 1 else 29500
    more = ["--main_process_ip", settings.main_process_ip] if settings.main_process_ip else []
    if settings.num_machines > 1:
        more.append(f"--rdzv_conf=timeout={max(1, round(60 * settings.join_minutes))}")  # torch's own: 15 minutes
    return [
        *strategy.arguments(settings),
        f"--num_processes={number}",
        f"--num_machines={settings.num_machines}",
        f"--machine_rank={settings.machine_rank}",
        f"--main_process_port={port}",
        *more,
    ]


@contextmanager
def passing_signals(pass_on: Callable[[int], object]) -> Iterator[list[int]]:
    """Call `pass_on` at SIGTERM and SIGINT, so that the processes save and end; yields the signals that came."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        pass_on(number)

    with processes.handling_stops(handle):
        yield received


def refused(config: Config) -> str | None:
    """Why these processes cannot be started here, and a remedy; None if they can."""
    settings = config.launch
    machines, number = settings.num_machines, settings.num_processes
    gpus = torch.cuda.device_count()
    if machines > 1 and not settings.main_process_ip:
        return f"{machines} machines need the address of machine 0: --launch.main_process_ip ADDRESS"
    if settings.machine_rank >= machines:
        return f"machine {settings.machine_rank} of {machines} does not exist: they are numbered from 0"
    if number is None:
        return None if gpus else "there is no GPU here; give the number of processes: --launch.num_processes 2"
    if number % machines:
        return f"{number} processes cannot be shared out over {machines} machines; use a multiple of {machines}"
    if gpus and number // machines > gpus:
        return (
            f"{number // machines} processes on this machine, which has {gpus} GPUs: each process needs its own; "
            f"use --launch.num_processes {gpus * machines}"
        )
    return taken(settings)


def taken(settings: LaunchSection) -> str | None:
    """Why the port cannot be used; None if it can."""
    port = settings.main_process_port
    if not port or settings.machine_rank:
        return None
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            return f"port {port} is not free ({error.strerror}); use another --launch.main_process_port"
    return None
