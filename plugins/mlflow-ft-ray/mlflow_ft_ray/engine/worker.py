"""What Ray Train runs on each worker: a process of mlflow-ft, as torchrun would start it, and the wait for its end.

It is a process of its own because a run handles signals, which Python allows in the main thread only, and because Ray
then decides nothing but where it runs. Ray sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.collective import broadcast_from_rank_zero

from mlflow_ft.values.launch import result_file
from mlflow_ft_ray import child
from mlflow_ft_ray.engine import cluster

LOOK_SECONDS = 1.0
RETRIED = "ProcessError"
"""The error of rank 0 that means: another process was lost. Any other is the user's, and comes again."""


class LostError(RuntimeError):
    """A process of the training was lost; Ray starts the workers again."""


def work(asked: Mapping[str, Any]) -> str:
    """Run this worker's process; rank 0 returns the result of the run, the others "".

    Args:
        asked: the `request`, the `folder` and the `environ` of the process that starts the training, and its `board`.

    Raises:
        LostError: only on rank 0, whose word counts: the others end when rank 0 does.
    """
    board, leads = asked["board"], train.get_context().get_world_rank() == 0
    mine = {"port": free_port(), "attempt": ray.get(board.begin.remote())} if leads else None
    agreed = broadcast_from_rank_zero(mine)
    with tempfile.TemporaryDirectory(prefix="mlflow-ft-ray-") as folder:
        file = Path(folder) / "request.json"
        file.write_text(asked["request"], encoding="utf-8")
        again = ["--again"] if agreed["attempt"] else []
        command = child.command("mlflow_ft.launched", [str(file), *again])
        environ = os.environ | asked["environ"] | {"MASTER_PORT": str(agreed["port"]), cluster.INSIDE: "1"}
        process = subprocess.Popen(command, env=environ, cwd=working_folder(asked["folder"]))
        code = wait(process, board)
        return result(file, code) if leads else ""


def free_port() -> int:
    """A port for the processes to meet at; Ray's own process group has taken the one in MASTER_PORT."""
    with socket.socket() as trial:
        trial.bind(("", 0))
        return int(trial.getsockname()[1])


def working_folder(wanted: str) -> str | None:
    """The folder in which the training was started, if this machine has it, else Ray's own."""
    return wanted if Path(wanted).is_dir() else None


def wait(process: subprocess.Popen[bytes], board: Any, name: str = "") -> int:
    """Wait until the process has ended, pass a signal for it on to it, and return its exit code."""
    told = False
    while True:
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if not told and ray.get(board.stopping.remote(name)):
                told = True
                process.send_signal(signal.SIGTERM)


def result(file: Path, code: int) -> str:
    """What rank 0 has written.

    Raises:
        LostError: nothing, or that another process was lost.
    """
    written = result_file(file)
    if not written.is_file():
        raise LostError(f"rank 0 ended without a result (exit code {code})")
    text = written.read_text(encoding="utf-8")
    answer = json.loads(text)
    if answer.get("error") == RETRIED:
        raise LostError(answer["message"])
    return text
