"""The launcher `ray`: what it refuses, what a worker does, and a training that loses a machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow_ft_ray
import psutil
import pytest
from mlflow import MlflowClient
from mlflow_ft_ray.engine import cluster as connection
from mlflow_ft_ray.engine import launching, worker
from ray._private import services

from mlflow_ft import ConfigError, LaunchSection
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.tracking.heartbeat import has_ended

STEPS, SAVED = 300, 20
CHILD = (
    "import os; from mlflow_ft_ray import child; child.die_with(os.getppid()); print(os.getpid(), flush=True); input()"
)
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {CHILD!r}]).wait()"


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """The first value that is not empty."""
    while not (value := what()):
        assert process is None or process.poll() is None, "the command has ended"
        time.sleep(0.1)
    return value


NOWHERE = "127.0.0.1:1"


def test_contract(plugin_contract: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    plugin_contract(mlflow_ft_ray, without={"engines": "needs a cluster; test_rows.py has one"})


# --- before anything is started


@pytest.mark.parametrize(
    ("wanted", "cpus", "gpus", "reason"),
    [
        (2, 3, 0, None),
        (4, 3, 0, "4 processes, but the cluster has 3 CPUs: use --launch.num_processes 3"),
        (4, 64, 8, None),
        (9, 64, 8, "9 processes, but the cluster has 8 GPUs: use --launch.num_processes 8"),
        (None, 64, 8, None),
        (None, 64, 0, "the cluster has no GPU; give the number of processes: --launch.num_processes 2"),
    ],
)
def test_a_cluster_that_is_too_small(wanted: int | None, cpus: int, gpus: int, reason: str | None) -> None:
    assert launching.too_small(LaunchSection(num_processes=wanted), cpus=cpus, gpus=gpus) == reason


def test_without_a_cluster_nothing_is_started(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(8))
    command = [sys.executable, "-m", "mlflow_ft", "train", "lora", "--model", str(tiny_model), "--data", str(rows)]
    environ = os.environ | {"RAY_ADDRESS": NOWHERE}
    given = ["--launch.launcher", "ray", "--launch.num_processes", "2"]
    done = subprocess.run([*command, *given], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"launch.launcher ray: {connection.NO_CLUSTER}" in done.stderr
    assert not (tmp_path / "mlruns").exists()
    assert "Traceback" not in done.stderr


def test_a_cluster_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lru_cache(lambda: {NOWHERE}))
    with pytest.raises(ConfigError, match=connection.NO_CLUSTER), connection.connected():
        pass


def test_what_the_processes_get_of_the_environment() -> None:
    environ = {"MLFLOW_RUN_ID": "r", "MLFLOW_FT_CHAIN_PID": "7", "HOME": "/root", "PYTHONPATH": "p"}
    assert connection.forwarded(environ=environ) == {"MLFLOW_RUN_ID": "r", "PYTHONPATH": "p"}


# --- what a worker does


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ({"outcome": {}}, None),
        ({"error": "DataError", "message": "no rows"}, None),
        ({"error": "ProcessError", "message": "rank 1 of 2 died"}, "rank 1 of 2 died"),
        (None, "rank 0 ended without a result"),
    ],
)
def test_only_a_loss_is_tried_again(tmp_path: Path, answer: dict[str, Any] | None, lost: str | None) -> None:
    if answer is not None:
        (tmp_path / "request.json.result").write_text(json.dumps(answer))
    if lost is None:
        assert json.loads(worker.result(tmp_path / "request.json", 0)) == answer
        return
    with pytest.raises(worker.LostError, match=lost):
        worker.result(tmp_path / "request.json", 1)


def test_a_process_ends_with_its_worker() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        wait_for(lambda: has_ended(child))


# --- a training


def start(cluster: Any, folder: Path, model: Path, *given: str) -> subprocess.Popen[bytes]:
    """A training on two nodes, as a user starts it."""
    rows = write_jsonl(folder / "rows.jsonl", make_rows(48))
    command = [sys.executable, "-m", "mlflow_ft", "train", "lora", "--model", str(model), "--data", str(rows)]
    settings = {
        "launch.launcher": "ray",
        "launch.num_processes": 2,
        "training.max_steps": STEPS,
        "training.save_steps": SAVED,
        "training.logging_steps": 1,
        "package.packagers": "[adapter]",
    }
    pairs = [f"--{name}={value}" for name, value in settings.items()]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    environ = os.environ | {"RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": store}
    return subprocess.Popen([*command, *pairs, *given], cwd=folder, env=environ)


def saved(folder: Path) -> list[Path]:
    return list(folder.glob("outputs/*/train/checkpoints/step-*/manifest.json"))


def on_nodes(cluster: Any) -> dict[str, Any]:
    """The nodes besides the head that processes of a training run on, by rank."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    return {
        process.environ()["RANK"]: raylets[parent.pid]
        for process in psutil.process_iter()
        if "mlflow_ft_ray.child" in process.cmdline()
        for parent in process.parents()
        if parent.pid in raylets
    }


def the_run(folder: Path) -> tuple[Any, MlflowClient]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run, client


@pytest.mark.fault("a node of a Ray cluster lost")
@pytest.mark.long
def test_a_training_goes_on_when_a_node_is_lost(three_nodes: Any, tiny_model: Path, tmp_path: Path) -> None:
    process = start(three_nodes, tmp_path, tiny_model)
    wait_for(lambda: saved(tmp_path), process)
    _, node = min(on_nodes(three_nodes).items())
    three_nodes.remove_node(node, allow_graceful=False)
    assert process.wait() == 0
    run, client = the_run(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow_ft.resumed"].startswith("after step ")
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in sorted(curve, key=lambda point: point.step)] == list(range(1, STEPS + 1))
    assert len(client.search_model_versions(f"run_id='{run.info.run_id}'")) == 1


@pytest.mark.fault("SIGTERM to a training on a Ray cluster")
@pytest.mark.long
def test_a_signal_reaches_the_processes_on_the_cluster(three_nodes: Any, tiny_model: Path, tmp_path: Path) -> None:
    process = start(three_nodes, tmp_path, tiny_model)
    wait_for(lambda: saved(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    run, client = the_run(tmp_path)
    assert run.info.status == "KILLED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    [last] = [file for file in saved(tmp_path) if file.parent.name == f"step-{max(steps):06}"]
    assert last.is_file()
