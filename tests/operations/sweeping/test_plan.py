"""What a sweep will do, and what is refused before its first trial: no weights are loaded, and no run is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft import cli, plugins
from mlflow_ft.cli import sweeps
from mlflow_ft.cli.asked import asked
from mlflow_ft.cli.pairs import share
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.sweeping.budget import read_budget
from mlflow_ft.operations.sweeping.default_space import default_space
from mlflow_ft.operations.sweeping.plan import Plan, read_plan
from mlflow_ft.operations.sweeping.study import Study
from mlflow_ft.registry import Registry
from tests.operations.sweeping.conftest import Sweep

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
REGISTRY = Registry(LOADED)


def planned(*words: str, **options: str) -> Plan:
    return sweeps.planned(asked(words, LOADED), REGISTRY, words, sweeps.Asked(**options))  # type: ignore[arg-type]  # text


def searched(*words: str) -> dict[str, str]:
    return {dimension.path: str(dimension) for dimension in default_space(asked(words, LOADED), REGISTRY)}


def test_the_usual_ranges_are_searched_when_no_space_is_given() -> None:
    assert searched("lora", "--data", "rows.jsonl") == {
        "adapter.r": "4 to 64 on a log scale",
        "adapter.lora_alpha": "1 to 2 times the rank",
        "adapter.lora_dropout": "0 to 0.1",
        "training.learning_rate": "5e-05 to 0.0005 on a log scale",
        "training.num_train_epochs": "1 to 5 in steps of 1",
    }


def test_what_the_user_fixed_is_not_searched() -> None:
    assert set(searched("qlora", "--adapter.r=8", "--lora_dropout=0", "--max_steps=10")) == {
        "adapter.lora_alpha",
        "training.learning_rate",
    }
    with pytest.raises(ConfigError, match="nothing to search"):
        searched("full", "--learning_rate=1e-5", "--num_train_epochs=1")


def test_the_rate_is_that_of_the_method_and_of_what_it_trains() -> None:
    rates = {
        words: searched(*words)["training.learning_rate"]
        for words in [("full",), ("sft", "--adapter.kind=none"), ("dpo",), ("dpo", "--adapter.kind=none")]
    }
    assert list(rates.values()) == [
        "5e-06 to 5e-05 on a log scale",
        "5e-06 to 5e-05 on a log scale",
        "5e-06 to 5e-05 on a log scale",
        "5e-07 to 5e-06 on a log scale",
    ]


@pytest.mark.parametrize(
    ("text", "shown"), [(None, "20 trials"), ("3", "3 trials"), ("90m", "90 minutes"), ("1.5h", "90 minutes")]
)
def test_a_budget_is_trials_or_time(text: str | None, shown: str) -> None:
    assert str(read_budget(text)) == shown


@pytest.mark.parametrize("text", ["0", "-1", "ten", "90s", "1.5", "0m"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a budget"):
        read_budget(text)


def test_the_objective_is_the_methods_own_score_in_its_own_direction() -> None:
    assert str(planned("lora").objective) == "lowest loss"
    assert str(planned("dpo").objective) == "highest preference_accuracy"
    assert str(planned("lora", objective="exact_match").objective) == "highest exact_match"
    assert (
        str(planned("grpo", "--reward_funcs=exact-answer", objective="reward/exact-answer").objective)
        == "highest reward/exact-answer"
    )
    assert (
        str(planned("lora", "--evaluation.guards={safety: demo}", objective="safety/loss").objective)
        == "lowest safety/loss"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "exakt_match"}, r"no evaluator returns this score\n.*did you mean exact_match"),
        ({"objective": "preference_accuracy", "words": "--evaluation.evaluators=loss"}, "no evaluator returns"),
        ({"objective": "exact_match", "direction": "minimize"}, "minimize contradicts the score exact_match"),
        ({"direction": "down"}, "'down' is not minimize or maximize"),
        ({"budget": "soon"}, "is not a budget"),
        ({"words": "--launch.launcher=accelerate"}, "accelerate starts no trials: a trial is trained by one process"),
        ({"words": "--launch.num_processes=2"}, "a trial is trained by one process, but launch.num_processes"),
    ],
)
def test_an_impossible_aim_is_refused(options: dict[str, str], message: str) -> None:
    words = options.pop("words", "--run.seed=1")
    with pytest.raises(ConfigError, match=message):
        planned("lora", words, **options)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "learning_rat: [1e-4, 1e-3]",
            r"space.yaml line 1  learning_rat  unknown key; did you mean training.learning_rate",
        ),
        ("# nothing\n", "is empty"),
        ("learning_rate: {min: 1e-3, max: 1e-4}", "min 1e-3 is above max 1e-4"),
        ("adapter.r: [8, -2]", r"space.yaml line 1.*-2 is not a whole number of at least 1"),
        ("adapter.kind: [lora, lorra]", "adapter.kind lorra: unknown adapter 'lorra'"),
    ],
)
def test_an_impossible_space_opens_no_run(sweep: Sweep, space: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(space)
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize("given", [["--gpus-per-trial", "0.5"], ["--cpus_per_trial=2"]], ids=lambda words: words[0])
def test_one_machine_does_not_give_out_cpus_and_gpus(
    quick: list[str], given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="per-trial: the trials of one machine share its CPUs"):
        cli.cli.main(["sweep", *quick, *given], standalone_mode=False)
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize("text", ["-1", "1.5", "nan", "inf", "many"])
def test_what_is_no_number_of_devices_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--gpus-per-trial: '{text}' is not a number of devices"):
        share("gpus-per-trial", text)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("2", 2), ("0.5", 0.5)])
def test_a_number_of_devices_is_whole_or_a_share_of_one(text: str, number: float) -> None:
    assert share("gpus-per-trial", text) == number


def test_a_setting_is_not_both_fixed_and_searched(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("adapter.r: [4, 8]")
    with pytest.raises(ConfigError, match=r"adapter.r  is also fixed by --r \(command line\)"):
        planned("lora", "--r=8", sweep=str(file))


def test_trials_are_not_pruned_where_their_losses_cannot_be_compared(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("objective.beta: 0.01 to 0.5")
    assert "changes the loss itself" in planned("dpo", sweep=str(file)).unpruned
    assert "does not say how good the answers are" in planned("grpo", "--reward_funcs=exact-answer").unpruned
    assert not planned("dpo").unpruned


def test_a_recorded_plan_is_the_same_plan() -> None:
    import json

    plan = planned("lora", "--data=rows.jsonl", budget="90m")
    assert read_plan(json.loads(plan.as_json())) == plan


def test_the_same_sweep_draws_the_same_trials_however_often_it_is_interrupted(tmp_path: Path) -> None:
    def drawn(file: Path, *, interrupted: bool) -> list[dict[str, object]]:
        study, values = Study(file, "study", plan=planned("lora", budget="14")), []
        for _ in range(14):
            trial = study.draw()
            assert trial is not None
            values.append(trial.values)
            study.tell(trial.number, "complete", float(trial.values["learning_rate"]))
            if interrupted:
                study = Study(file, "study")
        assert len({str(value) for value in values}) == len(values)
        return values

    assert drawn(tmp_path / "one", interrupted=False) == drawn(tmp_path / "two", interrupted=True)


def test_a_space_of_few_choices_is_tried_completely(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("adapter.r: [4, 8]\nadapter.lora_dropout: [0, 0.1]")
    study = Study(tmp_path / "study", "study", plan=planned("lora", sweep=str(file), budget="5"))
    drawn = [study.draw() for _ in range(5)]
    assert sorted(sorted(trial.values.items()) for trial in drawn if trial) == [
        [("lora_dropout", dropout), ("r", rank)] for dropout in (0.0, 0.1) for rank in (4.0, 8.0)
    ]
    assert drawn[4] is None
