"""A training by another tool, for real: transformers' trainer in a process of its own, with this Python."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from mlflow_ft import Trainer, hookimpl, pipeline, plugins
from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.tools import by_tool
from mlflow_ft.engine.tools.mirror import Mirror
from mlflow_ft.engine.tools.tool_settings import sent, translated
from mlflow_ft.errors import ProcessError, RefusedError, StoppedError
from mlflow_ft.progress import Progress
from mlflow_ft.tracking.heartbeat import has_ended

NAMES = (
    *("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "logging_steps", "eval_steps"),
)
TABLE = (*(sent(f"training.{name}", name) for name in NAMES), sent("run.seed", "seed"))
PATHS = ("base", "adapter", "tokenizer", "rows", "held_out", "output")
QUICK = {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "package.packagers": "adapter"}


@pytest.fixture
def with_tool(tiny_model: Path, tiny_rows: Path, fine_tune: Callable[..., Any]) -> Callable[..., Any]:
    """A run in which the tool trains; `broken` are settings that make it misbehave."""

    def run(method: str = "by-tool", broken: dict[str, Any] | None = None, **more: Any) -> Any:
        return fine_tune(method, a_plugin(broken or {}), model=tiny_model, data=tiny_rows, **(QUICK | more))

    return run


def a_plugin(broken: dict[str, Any]) -> Any:
    def settings(work: by_tool.Work) -> dict[str, Any]:
        args = translated(TABLE, work.values) | {"eval_strategy": "steps", "eval_on_start": True}
        paths = {name: str(getattr(work, name)) for name in PATHS}
        return {**paths, "args": args, "checkpoint": work.checkpoint and str(work.checkpoint), **broken}

    def train(job: Any, data: Any, model: Any) -> Any:
        environment = Environment(name="tool", python=Path(sys.executable), packages={})
        script = Path(__file__).with_name("tool.py")
        return by_tool.train(job, data, model, by_tool.Tool(environment=environment, script=script, settings=settings))

    module: Any = ModuleType("by_tool")
    record = Trainer(name="by-tool", summary="by a tool", train=train, defaults={"adapter.kind": "lora"})
    module.register_trainers = hookimpl(lambda: [record])
    return module


def curve(run_id: str, key: str) -> list[float]:
    points = MlflowClient().get_metric_history(run_id, key)
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def only_run() -> Any:
    (run,) = MlflowClient().search_runs(["0"])
    return run


def is_gone(pid: int) -> bool:
    try:
        return has_ended(psutil.Process(pid))  # a container's first process may not collect its children
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_the_curves_are_those_of_our_own_trainer_and_the_adapter_is_registered(with_tool: Any) -> None:
    theirs, ours = with_tool(), with_tool("lora")
    assert theirs.versions
    for key in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
        assert curve(theirs.run_id, key) == pytest.approx(curve(ours.run_id, key), rel=1e-4), key
    assert len(curve(theirs.run_id, "train/loss")) == 4
    assert curve(theirs.run_id, "train/tool_kl") == [pytest.approx(0, abs=1e-6)]
    assert curve(theirs.run_id, "parity/adapter/kl_mean")[0] < 1e-6
    logged = {file.path for file in MlflowClient().list_artifacts(theirs.run_id, "tool")}
    assert logged == {"tool/settings.json", "tool/packages.json", "tool/output.log"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (
            {"fails": True},
            ProcessError,
            r"tool ended with exit code 1; its last lines:\n(.*\n)*  the tool's own reason",
        ),
        ({"unmasked": True}, RefusedError, "its training data has other tokens or labels"),
        ({"other": True}, RefusedError, "tool is not the model that it trained"),
    ],
)
def test_a_run_whose_tool_fails_or_trains_something_else(with_tool: Any, broken: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        with_tool(broken=broken)
    assert only_run().info.status == "FAILED"


@pytest.mark.long
def test_a_signal_ends_the_tool_and_all_that_it_started_and_the_run_is_resumed(with_tool: Any) -> None:
    def stop() -> None:
        while not [run for run in MlflowClient().search_runs(["0"]) if "train/loss" in run.data.metrics]:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(StoppedError):
        with_tool(broken={"child": True, "pause": 0.5}, max_steps=30)
    run = only_run()
    assert run.info.status == "KILLED"
    folder = Path("outputs").resolve() / run.info.run_id / "tool"
    assert is_gone(int((folder / "child.pid").read_text()))
    checkpoint = by_tool.latest(folder / "output")
    assert checkpoint is not None
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 0 < step < 30
    loaded = plugins.load()
    loaded.add(a_plugin({}), name="by_tool", version="test")
    outcome = pipeline.resume(run.info.run_id, loaded, progress=Progress(quiet=True))
    assert outcome.versions
    assert only_run().info.status == "FINISHED"
    logged = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/tool/settings.json")
    assert logged["checkpoint"] == str(checkpoint)
    assert not folder.exists()
    steps = {point.step for point in MlflowClient().get_metric_history(run.info.run_id, "train/loss")}
    assert steps == set(range(1, 31))


@pytest.mark.long
def test_a_callback_of_ours_can_end_the_training_early(with_tool: Any, fine_tune: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Mirror, "stopping", property(lambda mirror: mirror.state.global_step >= 2))
    outcome = with_tool(broken={"pause": 1.0}, max_steps=30)
    assert outcome.versions
    assert 2 <= curve(outcome.run_id, "train/steps")[0] < 30


def test_a_checkpoint_without_its_last_file_is_not_continued(tmp_path: Path) -> None:
    assert by_tool.latest(tmp_path) is None
    for step, complete in ((9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert by_tool.latest(tmp_path) == tmp_path / "checkpoint-10"
