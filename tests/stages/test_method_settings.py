"""Settings and options that a method does not have are refused before anything is loaded."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import SchedulerType
from transformers.training_args import OptimizerNames
from trl import DPOTrainer

import mlflow_ft.engine.training
from mlflow_ft.builtin.trainers import preference
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.training import TrainingSection
from mlflow_ft.engine.training import loop
from mlflow_ft.engine.training.elsewhere import ELSEWHERE
from mlflow_ft.errors import ConfigError
from mlflow_ft.plugins import load
from mlflow_ft.registry import Registry
from mlflow_ft.stages import method_settings, start
from mlflow_ft.stages.method_settings import (
    EXAMPLES,
    SCHEDULES_WITH_SETTINGS,
    USUAL_OPTIMIZERS,
    USUAL_SCHEDULES,
)

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
        ("lora", "{chat_template_path: model}", "chat_template_path is not set here"),
        ("dpo", "{hub_token: secret}", "hub_token is not set here"),
        ("lora", "{completion_only_loss: false}", "completion_only_loss is not set here"),
        ("reward", "{label_smoothing_factor: 0.1}", "label_smoothing_factor is not set here"),
        ("lora", "{train_sampling_strategy: shuffled}", "'shuffled' is not one of random, sequential"),
        ("kto", "{loss_type: ktoo}", "'ktoo' is not one of kto, apo_zero_unpaired"),
        pytest.param(
            "lora",
            "{activation_offloading: true}",
            "moves activations from a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it"),
        ),
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
    with pytest.raises(ConfigError, match="1 problem in the settings of objective and rollout") as error:
        check("lora", "--objective.beta", "0.2")
    assert str(error.value.problems[0].place) == "--objective.beta (command line)"
    assert "uses: packing, options" in str(error.value.hint)


@pytest.mark.parametrize(
    ("setting", "options", "reason", "remedy"),
    [
        ("lr_scheduler_type=cosin", "", "lr_scheduler_type: transformers has no 'cosin'", "did you mean cosine?"),
        ("optim=adamw", "", "optim: transformers has no 'adamw'", "did you mean adamw_torch?"),
        ("lr_scheduler_type=warmup_stable_decay", "", "needs num_decay_steps", "{num_decay_steps: 100}"),
        (
            "lr_scheduler_type=cosine_with_min_lr",
            "{lr_scheduler_kwargs: {num_cycles: 1}}",
            "needs min_lr",
            "min_lr_rate",
        ),
    ],
)
def test_a_schedule_or_optimizer_that_cannot_be_made_is_refused(
    setting: str, options: str, reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        check("lora", f"--{setting}", *(["--objective.options", options] if options else []))
    assert remedy in str(error.value.hint)


def test_schedules_and_optimizers_of_transformers_are_taken() -> None:
    for shape in SchedulerType:
        given = {name: EXAMPLES.get(name, 1e-6) for name in SCHEDULES_WITH_SETTINGS.get(shape.value, ())}
        check("lora", f"--lr_scheduler_type={shape.value}", f"--objective.options={{lr_scheduler_kwargs: {given}}}")
    for optimizer in OptimizerNames:
        check("dpo", f"--optim={optimizer.value}")
    assert set(USUAL_SCHEDULES) <= {shape.value for shape in SchedulerType}
    assert set(USUAL_OPTIMIZERS) <= {"auto", *(optimizer.value for optimizer in OptimizerNames)}


def test_what_loop_settles_is_a_setting_or_refused_before_anything_is_loaded() -> None:
    tree = ast.parse(Path(inspect.getfile(loop.arguments)).read_text())
    (common,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "common"
    ]
    settled = {ast.literal_eval(key) for key in common.keys}  # type: ignore[union-attr]  # a display of a dict
    assert settled <= {*TrainingSection.model_fields, *ELSEWHERE}


def test_every_field_to_set_elsewhere_is_one_of_trl() -> None:
    kinds = [trainer.options() for trainer in OURS if trainer.options]
    assert {field.name for kind in kinds for field in dataclasses.fields(kind)} >= set(ELSEWHERE)


def test_kto_needs_two_answers_in_a_batch() -> None:
    config = asked(["kto", "--per_device_train_batch_size=1"], load({"MLFLOW_FT_PLUGINS": ""}))
    with pytest.raises(ConfigError, match="per_device_train_batch_size must be 2 or more"):
        start.check_method(config, REGISTRY)


@pytest.mark.parametrize("method", ["dpo", "cpo", "simpo", "kto", "orpo"])
def test_a_beta_of_0_is_refused_where_nothing_would_be_compared(method: str) -> None:
    config = asked([method, "--objective.beta=0"], load({"MLFLOW_FT_PLUGINS": ""}))
    if method == "orpo":  # which then imitates the chosen answers
        start.check_method(config, REGISTRY)
        return
    with pytest.raises(ConfigError, match=r"objective\.beta must be above 0"):
        start.check_method(config, REGISTRY)


@pytest.mark.parametrize(
    ("method", "given", "reason"),
    [
        ("kto", ["--objective.loss_type=ktoo"], "'ktoo' is not one of kto, apo_zero_unpaired"),
        ("cpo", ["--objective.loss_type=sigmoidd"], "'sigmoidd' is not one of sigmoid"),
        ("dpo", ["--objective.loss_type=[sigmoid, foo]"], "objective.loss_type foo is not one of"),
        ("dpo", ["--objective.options", "{loss_type: foo}"], "objective.loss_type foo is not one of"),
        ("dpo", ["--objective.loss_type=exo_pair"], "needs an objective.label_smoothing above 0"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused(method: str, given: list[str], reason: str) -> None:
    config = asked([method, *given], load({"MLFLOW_FT_PLUGINS": ""}))
    with pytest.raises(ConfigError, match=re.escape(reason)):
        start.check_method(config, REGISTRY)


def test_the_losses_of_dpo_are_those_of_trl() -> None:
    text = Path(inspect.getfile(DPOTrainer)).read_text()
    assert set(re.findall(r'loss_type == "(\w+)"', text)) == preference.BY_PAIR | preference.OF_BATCH


@pytest.mark.parametrize(("loss", "parts"), [("hinge", True), ("aot", False), ("[sigmoid, sft]", False)])
def test_a_loss_among_the_options_decides_whether_a_batch_is_computed_in_parts(loss: str, *, parts: bool) -> None:
    for given in (["--objective.options", f"{{loss_type: {loss}}}"], [f"--objective.loss_type={loss}"]):
        config = asked(["dpo", *given], load({"MLFLOW_FT_PLUGINS": ""}))
        assert REGISTRY.trainers["dpo"].in_parts(config) is parts
