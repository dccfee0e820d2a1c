"""The same command on each of two machines, which are both this one: one run, on machine 0."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.rarely import some_always

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tracking_store: str, tiny_model: Path, tiny_rows: Path) -> Start:
    """Start the command of a machine: `start(0)`, `start(1)`."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]

    def command(machine: int, *words: str, minutes: float = 5.0) -> subprocess.Popen[str]:
        launch = {"num_machines": 2, "num_processes": 2, "machine_rank": machine, "join_minutes": minutes}
        launch |= {"launcher": "accelerate", "main_process_ip": "127.0.0.1", "main_process_port": port}
        quick = {"max_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2, "package.round_trip": "false"}
        settings = {"model": tiny_model, "data": tiny_rows} | quick | {f"launch.{key}": launch[key] for key in launch}
        pairs = [f"--{key}={value}" for key, value in settings.items()]
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow_ft", *(words or ("train", "full")), *pairs],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return command


def test_two_machines_train_one_run(start: Start) -> None:
    other, first = start(1), start(0)
    printed = first.communicate(timeout=300)[0]
    assert first.returncode == 0, printed
    elsewhere = other.communicate(timeout=60)[0]
    assert other.returncode == 0, elsewhere
    assert elsewhere.splitlines()[-1] == "machine 1 is done; machine 0 has the run"
    [run] = MlflowClient().search_runs(["0"])
    assert run.info.run_id in printed
    assert run.data.tags["mlflow_ft.processes"].startswith("2 processes")
    assert len(MlflowClient().search_model_versions("name='tiny-full'")) == 1


@pytest.mark.parametrize("machine", some_always([0, 1], 1))
def test_a_machine_that_never_comes_is_reported(start: Start, machine: int) -> None:
    waiting = start(machine, minutes=0.05)
    printed = waiting.communicate(timeout=120)[0]
    assert waiting.returncode == 2
    assert re.search(r"Error: not all 2 machines came to 127\.0\.0\.1:\d+ within 0\.05 minutes", printed)
    assert "wait longer (--launch.join_minutes)" in printed
    assert "frame #" not in printed  # of a stack of C++
    assert not MlflowClient().search_runs(["0"])


def test_a_chain_on_several_machines_is_refused(start: Start) -> None:
    chain = start(1, "rlhf")
    printed = chain.communicate(timeout=120)[0]
    assert chain.returncode == 2
    assert "only machine 0 has" in printed
    assert "with torchrun or srun on every machine" in printed
    assert not MlflowClient().search_runs(["0"])
