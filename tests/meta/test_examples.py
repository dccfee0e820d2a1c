"""Every example configuration loads, under the name that `--config` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import EXAMPLES, asked
from mlflow_ft.docs import methods
from mlflow_ft.engine.rewards import reward_sources
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start

WHOLE = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
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


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_whole_example_loads_and_gives_a_reason_for_every_choice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parents[1])
    config = asked(["--config", str(file)], plugins.load())
    start.check_names(config, Registry(plugins.load()))
    text = file.read_text()
    assert text.startswith("# ")
    assert f"--config examples/{file.name}" in text
    before = ""
    for line in text.splitlines():
        assert ": " not in line or "#" in line or before.lstrip().startswith("#"), f"{line!r} has no reason"
        before = line
    assert f"[{file.name}]({file.name})" in (file.parent / "README.md").read_text()


def test_the_reward_functions_of_an_example_find_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(WHOLE[0].parents[1])
    config = asked(["--config", "examples/math-rewards.yaml"], plugins.load())
    names = {
        reward.name: reward.function
        for reward in reward_sources.find(config.rollout.reward_funcs or (), Registry(plugins.load()))
    }
    completions = [
        [{"role": "assistant", "content": text}] for text in ("So the answer is: 1,200.", "3 and then 42", "no")
    ]
    assert names["correct"](completions=completions, answer=["1200", "42", "1"]) == [1.0, 1.0, 0.0]
    assert names["states_it"](completions=completions) == [1.0, 0.0, 0.0]


def test_the_built_in_data_brings_its_settings_and_other_data_does_not() -> None:
    demo, other = asked(["qlora"], plugins.load()), asked(["qlora", "--data", "rows.jsonl"], plugins.load())
    assert demo.origins["training.learning_rate"].startswith("demo settings.yaml line ")
    assert other.origins["training.learning_rate"] == "method qlora"
