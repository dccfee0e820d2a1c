"""Several processes train one run: the same losses as one process, one run, one version of each model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from mlflow_ft.testing import write_jsonl

pytestmark = pytest.mark.slow
STEPS = 8
TWO = {"launch.launcher": "accelerate", "launch.num_processes": 2}
with_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install mlflow-ft[deepspeed]"
)


def curve(run_id: str, key: str) -> list[float]:
    return [point.value for point in MlflowClient().get_metric_history(run_id, key)]


def make_pairs(count: int = 32) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"say {number}",
            "chosen": "blue " * (number % 5 + 1),
            "rejected": "green " * (number % 4 + 1),
        }
        for number in range(count)
    ]


def check_equal(
    fine_tune: Callable[..., Any],
    processes: int,
    method: str,
    strategy: str = "ddp",
    **settings: Any,
) -> Any:
    """Train in one process and in several with the same rows a step, and compare; returns the outcome of the latter."""
    common = {"max_steps": STEPS, "learning_rate": 0.01, "eval_steps": 4, "warmup_steps": 0} | settings
    several = TWO | {"launch.num_processes": processes, "launch.strategy": strategy}
    alone = fine_tune(method, per_device_train_batch_size=8, **common)
    together = fine_tune(method, per_device_train_batch_size=8 // processes, **several, **common)
    for key in ("train/loss", "eval/loss"):
        expected = curve(alone.run_id, key)
        assert len(expected) > 2
        assert curve(together.run_id, key) == pytest.approx(expected, rel=1e-5)
    assert len(mlflow.search_runs()) == 2
    return together


def test_two_processes_train_as_one(fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path) -> None:
    """41 rows: the last step of an epoch has one row, and one process has none."""
    outcome = check_equal(fine_tune, 2, "full", model=tiny_model, data=tiny_rows, **{"data.test_size": 7})
    assert [(version.name, version.version) for version in outcome.versions] == [("tiny-full", 2)]
    assert len(MlflowClient().search_model_versions("name='tiny-full'")) == 2
    tags = MlflowClient().get_run(outcome.run_id).data.tags
    assert tags["mlflow_ft.processes"] == "2 processes on 1 machine (gloo), ddp"
    assert len(outcome.scores.answers) == 4


@pytest.mark.fault("several processes against one")
@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "processes", "strategy"),
    [
        ("dpo", 2, "ddp"),
        ("kto", 2, "ddp"),
        ("dpo", 4, "ddp"),
        ("lora", 4, "ddp"),
        ("full", 2, "fsdp"),
        ("lora", 2, "fsdp"),
        ("dpo", 2, "fsdp"),
        ("kto", 2, "fsdp"),
        ("reward", 2, "fsdp"),
        *(
            pytest.param(method, 2, f"deepspeed-zero{stage}", marks=with_deepspeed)
            for stage in (2, 3)
            for method in ("full", "lora")
        ),
    ],
)
def test_several_processes_train_as_one(
    fine_tune: Callable[..., Any],
    tiny_model: Path,
    tmp_path: Path,
    tiny_rows: Path,
    method: str,
    processes: int,
    strategy: str,
) -> None:
    """With four processes the last step of an epoch has three rows."""
    pairs = method in ("dpo", "kto", "reward")
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs()) if pairs else tiny_rows
    kind = {"adapter.kind": "none", "learning_rate": 0.001} if pairs else {}  # less, or rounding grows beyond 1e-5
    kind |= {"data.test_size": 5 if processes == 4 else 4}
    outcome = check_equal(fine_tune, processes, method, strategy, model=tiny_model, data=data, **kind)
    assert len(outcome.versions) == (2 if method == "lora" else 1)
    if not pairs:  # what was packaged is what was trained
        metrics = MlflowClient().get_run(outcome.run_id).data.metrics
        assert metrics["eval/tuned/loss"] == pytest.approx(curve(outcome.run_id, "eval/loss")[-1], rel=1e-5)
    assert MlflowClient().get_run(outcome.run_id).data.tags["mlflow_ft.processes"].endswith(f"(gloo), {strategy}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("full", "ddp"),
        ("full", "fsdp"),
        ("lora", "fsdp"),
        *(pytest.param("full", f"deepspeed-zero{stage}", marks=with_deepspeed) for stage in (2, 3)),
    ],
)
def test_two_processes_end_together_and_keep_the_best_weights(
    fine_tune: Callable[..., Any], tiny_model: Path, tmp_path: Path, method: str, strategy: str
) -> None:
    """The held-out rows ask for the opposite of what is learned; rank 0 decides."""
    answers = {"train": "red green blue red", "held": "stone river lamp door"}
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"say {n}", "completion": answer} for n in range(12)])
        for name, answer in answers.items()
    }
    outcome = fine_tune(
        method,
        model=tiny_model,
        data=files["train"],
        early_stopping=2,
        max_steps=16,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        warmup_steps=0,
        learning_rate=0.01 if method == "full" else 0.1,
        **TWO,
        **{
            "launch.strategy": strategy,
            "data.eval_path": files["held"],
            "data.fail_on": "never",
            "evaluation.on_worse": "warn",
        },
    )
    losses, run = curve(outcome.run_id, "eval/loss")[1:], MlflowClient().get_run(outcome.run_id)
    lowest = losses.index(min(losses)) + 1
    assert len(losses) == lowest + 2 < 16
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow_ft.stopped_early"].startswith(f"at step {len(losses)} of 16")
    assert run.data.metrics["train/chosen_step"] == lowest
    assert run.data.metrics["eval/tuned/loss"] == pytest.approx(min(losses), rel=1e-5)


class Started:
    """A command in several processes, and what it printed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def wait_for(self, line: str, *, seconds: float = 0.0) -> None:
        while f"\n{line}" not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        time.sleep(seconds)

    def rank(self, number: int) -> psutil.Process:
        """The process with this rank."""
        inside = psutil.Process(self.process.pid).children(recursive=True)
        return next(process for process in inside if process.environ().get("RANK") == str(number))


@pytest.fixture
def start(tracking_store: str, tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a long training of a tiny model: `start(*before, **settings)`, `before` replaces plain Python."""
    started: list[Started] = []

    def command(*before: str, **settings: Any) -> Started:
        quick = {"model": tiny_model, "data": tiny_rows, "max_new_tokens": 4, "evaluation.max_rows": 2}
        quick |= {"max_steps": 400, "eval_steps": 100, "package.round_trip": "false", "learning_rate": 0.001}
        pairs = [f"--{key}={value}" for key, value in (quick | settings).items()]
        before = before or (sys.executable,)
        started.append(Started([*before, "-m", "mlflow_ft", "train", "full", *pairs], tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield command
    for each in started:
        if each.process.poll() is None:
            each.process.kill()


@pytest.mark.fault("a process of several killed")
@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_run(start: Callable[..., Started]) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    started = start(*torchrun)
    started.wait_for("train ...", seconds=2)
    lost = started.rank(1)
    lost.kill()
    assert started.process.wait(60) != 0
    [run] = MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert f"rank 1 of 2 (process {lost.pid} on " in run.data.tags["mlflow_ft.error"]
    assert "killed, or crashed" in run.data.tags["mlflow_ft.error"]
    assert run.data.tags["mlflow_ft.stage"] == "train"
    assert f"Error: rank 1 of 2 (process {lost.pid} on " in started.log.read_text()
    assert not MlflowClient().search_registered_models()


@pytest.mark.fault("SIGTERM to several processes")
@pytest.mark.long
@pytest.mark.parametrize(
    ("then", "strategy"),
    [
        (2, "ddp"),
        (1, "ddp"),
        (2, "fsdp"),
        pytest.param(2, "deepspeed-zero2", marks=with_deepspeed),
        pytest.param(2, "deepspeed-zero3", marks=with_deepspeed),
    ],
)
def test_processes_that_are_stopped_resume(start: Callable[..., Started], then: int, strategy: str) -> None:
    two = TWO | {"launch.strategy": strategy, "per_device_train_batch_size": 4}
    started = start(**two)
    started.wait_for("train ...", seconds=6)
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(60) == 143
    [run] = MlflowClient().search_runs(["0"])
    assert run.info.status == "KILLED"
    assert 0 < len(curve(run.info.run_id, "train/loss")) < 400
    alone = {"launch.launcher": "local", "launch.num_processes": 1, "per_device_train_batch_size": 8}
    changed = {} if then == 2 else alone
    pairs = [f"--{key}={value}" for key, value in changed.items()] + ["--accept-changes"] * (then == 1)
    command = [sys.executable, "-m", "mlflow_ft", "resume", run.info.run_id, *pairs]
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert MlflowClient().get_run(run.info.run_id).info.status == "FINISHED"
    losses = curve(run.info.run_id, "train/loss")
    assert len(losses) == 400
    if then == 1:
        assert "2 processes trained until then, now 1" in resumed.stderr
        return
    whole = start(**two)
    assert whole.process.wait(300) == 0
    other = next(other for other in MlflowClient().search_runs(["0"]) if other.info.run_id != run.info.run_id)
    assert curve(other.info.run_id, "train/loss") == losses
