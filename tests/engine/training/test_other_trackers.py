"""W&B (offline) and TensorBoard beside MLflow: what they get, and that their failure costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.config import Config
from mlflow_ft.config.schema import RunSection
from mlflow_ft.engine.training import loop, other_trackers
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from tests.engine.conftest import Bench

Make = Callable[..., Bench]
NO_SAMPLES = {"evaluation.samples": 0}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("offline")
def test_both_get_the_curves_that_mlflow_has(bench: Make) -> None:
    setup = bench("lora", also_report_to="wandb,tensorboard", eval_steps=2, **NO_SAMPLES)
    setup.train()
    folder = setup.job.folder
    curves = scalars(folder / "tensorboard")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4]
    assert [value for _, value in curves["train/loss"]] == pytest.approx(setup.curve("train/loss"), rel=1e-6)
    assert [value for _, value in curves["eval/loss"]] == pytest.approx(setup.curve("eval/loss"), rel=1e-6)
    (run,) = (folder / "wandb").glob(f"offline-run-*-{setup.job.run.run_id}")
    assert list(run.glob("*.wandb"))
    import wandb

    assert wandb.run is None, "the run was left open"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("failing", ["on_train_begin", "on_log"])
def test_a_tracker_that_fails_costs_nothing(bench: Make, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("api.example refused")

    monkeypatch.setattr(other_trackers.TensorBoardCallback, failing, fail)
    setup = bench("lora", also_report_to="tensorboard", max_steps=2, **NO_SAMPLES)
    warnings: list[str] = []
    monkeypatch.setattr(setup.job.progress, "warn", warnings.append)
    setup.train()
    assert len(setup.curve("train/loss")) == 2
    assert [text for text in warnings if "tensorboard" in text] == [
        "tensorboard receives nothing more of this training: ConnectionError: api.example refused; MLflow has it all"
    ]


def test_one_process_alone_reports(bench: Make) -> None:
    setup = bench("lora", also_report_to="tensorboard")
    kinds = []
    for tells in (True, False):
        with ExitStack() as bars:
            made = loop.callbacks(setup.job, setup.data, SimpleNamespace(), bars, tells=tells)
            kinds.append([type(callback) for callback in made])
    assert other_trackers.TensorBoard in kinds[0]
    assert other_trackers.TensorBoard not in kinds[1]


def test_a_missing_package_is_reported_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = Config(method="lora", run=RunSection(also_report_to=["wandb"]))
    with pytest.raises(ConfigError, match=r"wandb is not installed\n.*pip install wandb"):
        start.check_names(config, Registry(plugins.load({"MLFLOW_FT_PLUGINS": ""})))
