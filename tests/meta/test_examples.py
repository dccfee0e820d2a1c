"""Every example configuration loads, under the name that `--config` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import EXAMPLES, asked
from mlflow_ft.docs import methods
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start

NAMES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))


def test_there_is_an_example_for_every_built_in_method() -> None:
    assert set(NAMES) == {trainer.name for trainer in methods.ours(Registry(plugins.load({})).trainers)}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = asked(["--config", name, "--data", "rows.jsonl"], plugins.load())
    assert config.method == name
    start.check_names(config, Registry(plugins.load()))
    assert config.origins["training.learning_rate"].startswith(f"{name}.yaml line ")


def test_the_built_in_data_brings_its_settings_and_other_data_does_not() -> None:
    demo, other = asked(["qlora"], plugins.load()), asked(["qlora", "--data", "rows.jsonl"], plugins.load())
    assert demo.origins["training.learning_rate"].startswith("settings.yaml line ")
    assert other.origins["training.learning_rate"] == "method qlora"
