"""`training.per_device_train_batch_size: auto`: the largest that fits, with the rows of a step unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.training.longest_batch import LongestBatchError
from mlflow_ft.errors import ConfigError
from mlflow_ft.job import Job
from mlflow_ft.stages import batch_size, memory, train
from mlflow_ft.stages.memory import Room
from mlflow_ft.tracking.past_memory import MEASURED, PREDICTED, Calibration
from tests.engine.conftest import Bench, ListedRun
from tests.engine.conftest import bench as bench

Make = Callable[..., Bench]
AUTO = {"per_device_train_batch_size": "auto", "max_steps": 2}


class Run(ListedRun):
    """Also keeps the rest of what a stage tells MLflow."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}
        self.configs: list[Config] = []
        self.values: dict[str, float] = {}

    def read(self) -> Any:
        return SimpleNamespace(info=SimpleNamespace(experiment_id=None))

    def begin(self, stage: str) -> None: ...

    def log_config(self, config: Config) -> None:
        self.configs.append(config)

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def metrics(self, values: dict[str, float]) -> None:
        self.values |= values


def set_up(bench: Make, **settings: Any) -> tuple[Bench, Job, Run]:
    """A bench on which the per-device batch size is only what the settings say."""
    setup = bench("lora", **AUTO | settings)
    run: Any = Run()
    return setup, replace(setup.job, run=run), run


def numbers(job: Job) -> tuple[int | str, int]:
    return job.config.training.per_device_train_batch_size, job.config.training.gradient_accumulation_steps


def test_all_rows_of_a_step_if_they_fit(bench: Make) -> None:
    setup, job, run = set_up(bench, gradient_accumulation_steps=4)
    settled = batch_size.settle(job, setup.data, setup.base)
    assert numbers(settled) == (32, 1)
    assert run.configs == [settled.config]
    assert run.tags["mlflow_ft.batch_size"] == "32 rows per forward pass, gradient_accumulation_steps 1"


def test_a_part_of_them_if_not(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, job, _ = set_up(bench, gradient_accumulation_steps=2)
    needs = {
        size: memory.estimate_of_rows(job, setup.data, setup.base, batch=size, accumulation=16 // size)
        for size in (4, 8)
    }
    four, eight = (needs[size]["training"].total for size in (4, 8))  # type: ignore[index]  # a model that can be run
    here = Room(bytes=(four + eight) // 2, device="CPU", calibration=Calibration())
    monkeypatch.setattr(memory, "room", lambda *_: here)  # a machine with less memory
    assert numbers(batch_size.settle(job, setup.data, setup.base)) == (4, 4)


def test_a_number_that_was_given_stays(bench: Make) -> None:
    setup, job, _ = set_up(bench, per_device_train_batch_size=3)
    assert batch_size.settle(job, setup.data, setup.base) is job
    assert batch_size.smaller(job) is None


def test_a_batch_that_does_not_fit_in_truth_makes_room_for_a_smaller_one(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, job, run = set_up(bench)
    tried, really = [], job.registry.trainers["lora"].train

    def trains(job: Job, data: Any, model: Any) -> Any:
        tried.append(numbers(job))
        if job.config.training.batch_size > 2:
            raise LongestBatchError("out of memory in the longest batch, as on a small GPU")
        return really(job, data, model)

    record = replace(job.registry.trainers["lora"], train=trains)
    monkeypatch.setitem(job.registry.trainers._records, "lora", record)
    monkeypatch.setattr(train.rehearsal, "rehearse", lambda *_: None)  # has its own tests
    settled, trained = train.train(batch_size.settle(job, setup.data, setup.base), setup.data, setup.base)
    assert tried == [(8, 1), (4, 2), (2, 4)]
    assert numbers(settled) == (2, 4)
    assert trained.metrics["train/steps"] == 2
    assert run.values[MEASURED] > 0
    assert run.values[PREDICTED] > 0
    assert run.tags["mlflow_ft.memory"].startswith("training needs about ")


def test_any_other_word_is_refused(bench: Make) -> None:
    with pytest.raises(ConfigError, match="per_device_train_batch_size"):
        bench("lora", per_device_train_batch_size="all")
