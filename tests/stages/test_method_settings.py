"""Settings and options that a method does not have are refused before anything is loaded."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mlflow_ft.engine.training
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import ConfigError
from mlflow_ft.plugins import load
from mlflow_ft.registry import Registry
from mlflow_ft.stages import method_settings

REGISTRY = Registry(load({"MLFLOW_FT_PLUGINS": ""}))
OURS = [trainer for trainer in REGISTRY.trainers if trainer.options]


def check(method: str, *given: str) -> None:
    config = asked([method, *given], load({"MLFLOW_FT_PLUGINS": ""}))
    method_settings.check(config, REGISTRY.trainers[method])


def test_every_class_that_trains_is_that_of_a_method() -> None:
    folder = Path(mlflow_ft.engine.training.__file__).parent
    trees = [ast.walk(ast.parse(file.read_text())) for file in folder.glob("*.py")]
    classes = {
        alias.name
        for tree in trees
        for node in tree
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("trl")
        for alias in node.names
        if alias.name.endswith("Config")
    }
    assert {trainer.options().__name__ for trainer in OURS if trainer.options} == classes


@pytest.mark.parametrize("method", [trainer.name for trainer in OURS])
def test_an_option_that_the_method_lacks_is_refused(method: str) -> None:
    check(method)
    check(method, "--objective.options", "{dataloader_num_workers: 2}")
    with pytest.raises(ConfigError, match="has no field 'dataloader_num_worker'") as error:
        check(method, "--objective.options", "{dataloader_num_worker: 2}")
    assert error.value.hint == "did you mean dataloader_num_workers?"


@pytest.mark.parametrize(
    ("method", "option", "reason"),
    [
        ("lora", "{learning_rate: 1e-3}", "learning_rate has its own setting"),
        ("dpo", "{beta: 0.2}", "beta has its own setting"),
        ("grpo", "{num_generations: 3}", "num_generations has its own setting"),
        ("kto", "{dataloader_num_workers: many}", "dataloader_num_workers must be int"),
    ],
)
def test_an_option_that_cannot_be_set_is_refused(method: str, option: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(method, "--objective.options", option)


def test_an_option_is_free_where_its_setting_is_not_given() -> None:
    check("dpo", "--objective.options", "{loss_type: hinge}")
    with pytest.raises(ConfigError, match="loss_type has its own setting"):
        check("dpo", "--objective.loss_type", "ipo", "--objective.options", "{loss_type: hinge}")


def test_a_setting_of_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="settings of other methods: 1") as error:
        check("lora", "--objective.beta", "0.2")
    assert "uses: packing, options" in str(error.value.hint)
