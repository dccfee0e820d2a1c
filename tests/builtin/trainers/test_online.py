"""What grpo and rloo refuse before anything is loaded, and what they take as it comes."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
REGISTRY = Registry(LOADED)


def check(method: str, **settings: Any) -> None:
    given = {"reward_funcs": "valid-json", "data": "rows.jsonl"} | settings
    start.check_method(asked([method, *(f"--{key}={value}" for key, value in given.items())], LOADED), REGISTRY)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter.kind": "none"},
        {"adapter.kind": "ia3"},
        {"num_generations": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"num_generations": 3, "objective.options": "{steps_per_generation: 3}"},
        {"reward_funcs": "", "reward_model": "a-folder"},
    ],
    ids=str,
)
def test_what_works(method: str, settings: dict[str, Any]) -> None:
    check(method, **settings)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward_funcs": ""}, "none is named; name functions with --reward_funcs FILE.py:function"),
        ({"num_generations": 1}, "num_generations must be 2 or more"),
        ({"num_generations": 3}, r"8 answers .* set training.per_device_train_batch_size to 9"),
        ({"num_generations": 6, "gradient_accumulation_steps": 2}, r"8 x gradient_accumulation_steps 2\).* to 12"),
        ({"adapter.kind": "adalora", "objective.beta": 0.1}, "a second adapter, which AdaLoRA does not allow"),
        ({"adapter.kind": "prompt"}, "TRL pads prompts on the left"),
        ({"adapter.kind": "prefix"}, "TRL pads prompts on the left"),
        ({"adapter.kind": "adaption-prompt"}, "a head that this adapter hides"),
        ({"init_lora_weights": "lora_ga"}, "prompts have none"),
        ({"label_smoothing": 0.1}, "problem in the settings of objective and rollout"),
    ],
    ids=str,
)
def test_what_is_refused(method: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(method, **settings)


def test_answers_of_several_processes_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_generations": 4, "per_device_train_batch_size": 2}
    with pytest.raises(ConfigError, match="samples 2 answers"):
        check("grpo", **settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check("grpo", **settings)


def test_adalora_goes_without_a_reference() -> None:
    check("grpo", **{"adapter.kind": "adalora"})
    with pytest.raises(ConfigError, match="use grpo with beta 0"):
        check("rloo", **{"adapter.kind": "adalora"})


def test_the_loss_is_one_that_trl_has() -> None:
    check("grpo", loss_type="dr_grpo")
    with pytest.raises(ConfigError, match=r"loss_type grppo is not one of dapo, grpo"):
        check("grpo", loss_type="grppo")
    with pytest.raises(ConfigError, match="problem in the settings of objective and rollout"):
        check("rloo", loss_type="grpo")
