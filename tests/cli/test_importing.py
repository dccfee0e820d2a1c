"""`mlflow-ft import`: what is written, what is told, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from tests.cli.conftest import Run

TEXT = (
    "base_model: some/model\nadapter: lora\nlearning_rate: 1e-4\ndatasets:\n- {path: rows.jsonl, type: chat_template}\n"
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "axolotl.yml"
    file.write_text(TEXT)
    return file


def test_the_configuration_goes_to_stdout_and_the_report_to_stderr(run: Run, config: Path) -> None:
    done = run("import", config)
    assert done.code == 0, done.err
    assert done.out.startswith("# Imported from Axolotl")
    assert "learning_rate: 0.0001" in done.out
    assert "mapped" in done.err
    assert "mapped" not in done.out.replace("not mapped", "")


def test_what_is_written_is_a_configuration_of_train(run: Run, config: Path) -> None:
    assert run("import", config, "--out", "ours.yaml").code == 0
    resolved = asked(["--config", "ours.yaml"], plugins.load({}))
    assert (resolved.method, resolved.model.name, resolved.data.path) == ("lora", "some/model", "rows.jsonl")


@pytest.mark.parametrize("line", ["relora: true", "lerning_rate: 3"])
def test_a_refused_or_unknown_key_sets_the_exit_code(run: Run, config: Path, line: str) -> None:
    config.write_text(f"{TEXT}{line}\n")
    done = run("import", config, "--out", "ours.yaml", "--json")
    assert done.code == 1
    assert Path("ours.yaml").is_file()
    report = json.loads(done.out)
    bad = [key for key in report["keys"] if key["status"] in ("refused", "unknown")]
    assert [f"{key['key']}" for key in bad] == [line.partition(":")[0]]
    assert bad[0]["place"] == "axolotl.yml line 6"
    assert report["settings"]["model.name"] == "some/model"
    assert report["defaults"]["training.lr_scheduler_type"]["value"] == "cosine"


def test_a_command_after_two_dashes(run: Run, config: Path) -> None:
    done = run("import", "--", "trl", "sft", "--model_name_or_path", "m", "--dataset_name", "d", "--max_steps", "-1")
    assert done.code == 0, done.err
    assert "name: m" in done.out


def test_bad_input_is_an_error(run: Run, config: Path) -> None:
    for arguments in (
        (),
        (config, config),
        ("nowhere.yaml",),
        (config, "--from", "nothing"),
        (config, "--out", "no/x.yaml"),
    ):
        done = run("import", *arguments)
        assert (done.code, done.err.startswith("Error: ")) == (2, True), arguments
