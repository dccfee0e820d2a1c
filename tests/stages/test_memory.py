"""The memory that a run needs is compared with what there is, before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import ResourceError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import memory
from mlflow_ft.stages.memory import Room
from mlflow_ft.tracking.past_memory import DEVICE_TAG, MEASURED, PREDICTED, Calibration, calibration
from mlflow_ft.values import BaseModel
from mlflow_ft.values.inspected import Caution
from tests.tracking.conftest import client as client
from tests.tracking.conftest import store as store

MIB = 2**20


def check(model: Path, mib: float, *, known: Calibration | None = None, **settings: Any) -> str | Caution:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    given = {"model": model, "data.max_length": 512} | settings
    config = asked(["lora", *(f"--{key}={value}" for key, value in given.items())], loaded)
    base = BaseModel(name="base", path=model, name_or_path=str(model), revision="", origin="")
    here = Room(bytes=int(mib * MIB), device="a GPU", calibration=known or Calibration())
    return memory.check(config, Registry(loaded), base, here)


def test_what_fits_is_described_by_its_parts(tiny_model: Path) -> None:
    told = check(tiny_model, 1000)
    assert isinstance(told, str)
    assert told.startswith("training needs about ")
    assert "activations" in told
    assert told.endswith(" of 1,000 MiB")


def test_long_rows_that_would_not_fit_are_a_caution_with_remedies_in_order_of_cost(tiny_model: Path) -> None:
    caution = check(tiny_model, 20)
    assert isinstance(caution, Caution)
    assert caution.message.startswith("with rows of 512 tokens, training needs about ")
    assert caution.remedy.startswith(
        "in order of cost, with what it then needs: --training.per_device_train_batch_size"
    )
    assert "--training.gradient_accumulation_steps 4" in caution.remedy


def test_the_remedies_end_with_the_first_that_is_enough(tiny_model: Path) -> None:
    caution = check(tiny_model, 4)
    assert isinstance(caution, Caution)
    assert caution.remedy.index("batch_size 1") < caution.remedy.index("gradient_checkpointing true")
    assert "none of these is enough" in caution.remedy or caution.remedy.endswith(" MiB)")


def test_weights_that_no_row_could_be_short_enough_for_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ResourceError, match="for rows of any length, and a GPU has 0 MiB") as raised:
        check(tiny_model, 0.3)
    assert "none of these is enough" in raised.value.hint


def test_a_model_that_fits_on_no_single_device_is_refused_although_its_shares_fit(tiny_model: Path) -> None:
    launch = {"launch.launcher": "accelerate", "launch.num_processes": 8, "launch.strategy": "fsdp"}
    with pytest.raises(ResourceError, match="with fsdp each process loads the whole model before it keeps its share"):
        check(tiny_model, 0.45, **launch)
    assert isinstance(check(tiny_model, 1000, **launch), str)


def test_a_calibration_is_applied_and_its_runs_are_counted(tiny_model: Path) -> None:
    told = check(tiny_model, 1000, known=Calibration(factor=2, runs=3))
    plain = check(tiny_model, 1000)
    assert isinstance(told, str)
    assert "calibrated by 2.00, the median of 3 finished runs" in told
    assert told.split()[3] != str(plain).split()[3]


def logged(client: MlflowClient, measured: float, *, predicted: float = 1.0, device: str = "CPU", ends: str) -> None:
    run = client.create_run("0", tags={DEVICE_TAG: device})
    client.log_metric(run.info.run_id, PREDICTED, predicted)
    client.log_metric(run.info.run_id, MEASURED, measured)
    client.set_terminated(run.info.run_id, ends)


def test_an_estimate_is_calibrated_by_the_median_of_finished_runs_on_this_device(client: MlflowClient) -> None:
    assert calibration("0", "CPU") == Calibration(factor=1, runs=0)
    for measured in (1.1, 1.2, 9.0):
        logged(client, measured, ends="FINISHED")
    logged(client, 1.9, ends="FAILED")
    logged(client, 1.9, ends="FINISHED", device="NVIDIA H100")
    logged(client, 1.9, ends="FINISHED", predicted=0.01)  # too small to tell
    assert calibration("0", "CPU") == Calibration(factor=1.2, runs=3)
    assert calibration(None, "CPU").runs == 0
