"""Configurations and scripts are read as keys with places."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.importing import reading, tools


def read(tmp_path: Path, text: str, name: str = "config.yaml") -> reading.Read:
    file = tmp_path / name
    file.write_text(text)
    return reading.read(file)


def test_sections_lists_and_numbers(tmp_path: Path) -> None:
    found = read(tmp_path, "a: {b: 1e-4, c: '1e-4'}\nd:\n- {e: 1}\n- {e: 2}\nf: [1, 2]\ng:\n")
    assert {key.name: key.value for key in found.keys} == {
        "a.b": 1e-4,
        "a.c": "1e-4",
        "d[0].e": 1,
        "d[1].e": 2,
        "f": [1, 2],
        "g": None,
    }
    assert [key.place for key in found.keys][-1] == "config.yaml line 6"


def test_the_last_of_two_wins_and_the_first_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb: 2\na: 3\n")
    assert {key.name: key.value for key in found.keys} == {"a": 3, "b": 2}
    assert [key.value for key in found.overridden] == [1]


def test_options_of_a_command(tmp_path: Path) -> None:
    script = (
        "# comment\nexport A=1\ntorchrun --nproc_per_node 2 train_bash.py --x 1 --y=2e-5 --list a b --on > log 2>&1 &\n"
    )
    found = read(tmp_path, script, "run.sh")
    values = {key.name: key.value for key in found.keys}
    assert values == {"launcher.nproc_per_node": 2, "x": 1, "y": 2e-5, "list": ["a", "b"], "on": True}


def test_a_command_with_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model_name_or_path: m\nlearning_rate: 1e-5\n")
    found = read(tmp_path, "trl dpo --config base.yaml --learning_rate 2e-5\n", "run.sh")
    assert {key.name: key.value for key in found.keys} == {"model_name_or_path": "m", "learning_rate": 2e-5}
    tune = read(
        tmp_path, "tune run lora_finetune_single_device --config base.yaml epochs=2 model.lora_rank=4\n", "t.sh"
    )
    assert {key.name: key.value for key in tune.keys}["model.lora_rank"] == 4
    assert tools.recognise(tune) == "torchtune"


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("base_model: m\ndatasets: []\n", "axolotl"),
        ("model_name_or_path: m\nstage: sft\ntemplate: x\n", "llamafactory"),
        ("model:\n  _component_: torchtune.models.x\n", "torchtune"),
        ("model_name_or_path: m\ndataset_name: d\nuse_peft: true\n", "trl"),
    ],
)
def test_tools_are_recognised_by_their_keys(tmp_path: Path, text: str, tool: str) -> None:
    assert tools.recognise(read(tmp_path, text)) == tool


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a: [1\n", "config.yaml", "config.yaml line 2: not YAML"),
        ("- a\n- b\n", "config.yaml", "not a mapping"),
        ("echo hello\n", "run.sh", "no command that is known"),
        ("x: 1\n", "config.yaml", "no keys of a known tool"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_place(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tools.recognise(read(tmp_path, text, name))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot read nowhere\.yaml"):
        reading.read(Path("nowhere.yaml"))
