"""The settings of FSDP and DeepSpeed, as accelerate and transformers read them: nothing runs on a GPU here."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from mlflow_ft.config.launch import LaunchSection, Strategy
from mlflow_ft.engine.launching import strategy


def test_fsdp_is_version_2_with_a_unit_for_each_layer() -> None:
    variables = strategy.variables(LaunchSection(strategy="fsdp", cpu_offload=True))
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    assert variables["FSDP_VERSION"] == "2"
    assert variables["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert variables["FSDP_OFFLOAD_PARAMS"] == "true"


def automatic(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths of values that the trainer is to fill in."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from automatic(value, f"{path}{key}.")
        elif value == "auto":
            yield f"{path}{key}"


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("name", "stage"), [("deepspeed-zero2", 2), ("deepspeed-zero3", 3)])
def test_the_trainer_fills_in_the_shipped_deepspeed_configuration(name: Strategy, stage: int, *, offload: bool) -> None:
    variables = strategy.variables(LaunchSection(strategy=name, cpu_offload=offload))
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    config = HfDeepSpeedConfig(json.loads(Path(variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text()))
    assert config.get_value("zero_optimization.stage") == stage
    assert (config.get_value("zero_optimization.offload_optimizer.device") == "cpu") is offload
    assert config.is_zero3() is (stage == 3)
    keys = list(automatic(config.config))
    assert "train_micro_batch_size_per_gpu" in keys
    filled = inspect.getsource(HfTrainerDeepSpeedConfig)
    assert [key for key in keys if f'"{key}"' not in filled] == []


def test_a_deepspeed_configuration_of_the_user_replaces_the_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{}")
    settings = LaunchSection(strategy="deepspeed-zero2", deepspeed_config=file)
    assert strategy.variables(settings)["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(file)
