"""Search spaces: how they are written, what they mean, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.config.space import Dimension, settings
from mlflow_ft.config.space_file import read_space, usual_range
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry

SEVERAL = """
training:
  learning_rate: 1e-4 to 1e-2
  weight_decay: {min: 0, max: 0.1, step: 0.05}
r: {min: 4, max: 64}
adapter.lora_alpha: r to 2r
adapter.lora_dropout: {min: 0.01, max: 0.2, log: false}
adapter.kind: [lora, dora]
training.optim: {choices: [adamw_torch, sgd]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "space.yaml"


def test_bounds_and_choices_are_read(file: Path) -> None:
    file.write_text(SEVERAL)
    assert {dimension.path: str(dimension) for dimension in read_space(file)} == {
        "training.learning_rate": "0.0001 to 0.01 on a log scale",
        "training.weight_decay": "0 to 0.1 in steps of 0.05",
        "adapter.r": "4 to 64 on a log scale",
        "adapter.lora_alpha": "1 to 2 times the rank",
        "adapter.lora_dropout": "0.01 to 0.2",
        "adapter.kind": "lora, dora",
        "training.optim": "adamw_torch, sgd",
    }


def test_a_multiple_of_the_rank_becomes_a_whole_number() -> None:
    alpha = Dimension(path="adapter.lora_alpha", place="space", low=1, high=2, of_rank=True)
    rank = Dimension(path="adapter.r", place="space", low=4, high=64)
    drawn = {alpha.name: 1.45, rank.name: 6}
    assert settings((alpha, rank), drawn, rank=16) == {"adapter.lora_alpha": 9, "adapter.r": 6}
    assert settings((alpha,), {alpha.name: 1.45}, rank=16) == {"adapter.lora_alpha": 23}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lerning_rate: [1, 2]",
            r"space.yaml line 1  lerning_rate  unknown key; did you mean training.learning_rate\?",
        ),
        ("adapter: [lora]", "a section, not a field; adapter has kind"),
        ("", "is empty"),
        ("learning_rate: {min: 2, max: 1}", "min 2 is above max 1"),
        ("learning_rate: 2 to 1", "min 2 is above max 1"),
        ("learning_rate: 1 to 1", "min and max are both 1"),
        ("learning_rate: {min: 1}", "needs both min and max"),
        ("learning_rate: {min: 1, max: nan}", "is not a finite number"),
        ("learning_rate: {min: low, max: 1}", '"low" is not a number'),
        ("learning_rate: {min: 0, max: 1, log: true}", "a log scale needs a min above 0"),
        ("learning_rate: {min: 1, max: 2, log: maybe}", "log takes true or false"),
        ("learning_rate: {min: 1, max: 20, log: true, step: 1}", "has both log and step"),
        ("training.learning_rate: {min: 1, max: 2, stepp: 1}", "stepp is not one of min, max, log, step, choices"),
        ("r: {min: 4, max: 8, step: 0.5}", "step 0.5 is not a whole number"),
        ("r: 4.5 to 8", "takes whole numbers"),
        ("r: 8", "8 is one value, not a range or a list"),
        ("r: []", "has no choices"),
        ("r: [8, 8]", "names a choice twice"),
        ("r: [[8], 4]", "a choice must be one value"),
        ("r: {choices: [8], min: 4}", "has choices and bounds"),
        ("optim: 1 to 2", "takes text, not numbers"),
        ("r: [4, 8]\nadapter.r: [2, 4]", "adapter.r is already given at space.yaml line 1"),
        ("data.max_length: [64, 128]", "must be the same in all trials; set it for the whole sweep: --data.max_length"),
        ("run.seed: [1, 2]", "must be the same in all trials"),
    ],
)
def test_what_cannot_be_searched_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(file)


def test_every_problem_is_reported_at_once(file: Path) -> None:
    file.write_text("r: 8 to 4\nlerning_rate: [1, 2]\n")
    with pytest.raises(ConfigError) as error:
        read_space(file)
    assert [problem.place for problem in error.value.problems] == [
        "space.yaml line 1  r",
        "space.yaml line 2  lerning_rate",
    ]


def test_usual_values_may_depend_on_what_is_trained() -> None:
    text = "1e-6 to 5e-6 for all weights, 1e-5 to 1e-4 with an adapter"
    bounds = [usual_range("training.learning_rate", text, adapter=adapter, place="") for adapter in (False, True)]
    assert [(dimension.low, dimension.high) for dimension in bounds if dimension] == [(1e-6, 5e-6), (1e-5, 1e-4)]


def test_the_learning_rate_of_every_method_and_adapter_can_be_searched() -> None:
    registry = Registry(plugins.load({}))
    unreadable = [
        f"{record.name}: {path}: {text}"
        for record in (*registry.trainers, *registry.adapters)
        for path, text in record.ranges.items()
        if path in ("training.learning_rate", "adapter.r", "adapter.lora_alpha", "adapter.lora_dropout")
        for adapter in (True, False)
        if usual_range(path, text, adapter=adapter, place="") is None
    ]
    assert unreadable == []
