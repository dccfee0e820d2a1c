"""Errors are reported in a few lines with their place and a remedy, and recorded on the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from mlflow_ft import Score, plugins
from mlflow_ft.cli.train import as_dict, command
from mlflow_ft.pipeline import Outcome
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
ALPACA = {"instruction": "ask", "output": "say"}


@pytest.fixture(scope="session")
def untemplated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its chat template."""
    folder = tmp_path_factory.mktemp("model") / "untemplated"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def places(tmp_path: Path, tiny_model: Path, untemplated: Path) -> dict[str, Path]:
    """Files and folders that the bad inputs below name."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": \n')
    (tmp_path / "bad.yaml").write_text("adapter:\n  r: 8\n  rnak: 4\n")
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "rows.jsonl", make_rows(8))
    write_jsonl(tmp_path / "unknown.jsonl", [{"text": "x", "label": 1}] * 4)
    write_jsonl(tmp_path / "holes.jsonl", [ALPACA, ALPACA, {"instruction": "ask"}, ALPACA])
    return {"tmp": tmp_path, "tiny": tiny_model, "untemplated": untemplated}


# name -> (arguments, parts of the message: place, fault and remedy)
BAD: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "a missing file": ("lora --data none.jsonl", ("the data file 'none.jsonl' does not exist", "looked in {tmp}")),
    "an empty file": ("lora --data empty.jsonl", ("'empty.jsonl' is empty (0 bytes)", "add rows to it")),
    "malformed JSON": (
        "lora --data broken.jsonl",
        ("1 of 2 rows cannot be read", "broken.jsonl:3  malformed JSON: ", "fix these rows"),
    ),
    "an unknown format": (
        "lora --data unknown.jsonl",
        ("unknown.jsonl:1: ", "no known format; their columns are text, label", "alpaca needs instruction, output"),
    ),
    "a missing column": (
        "lora --data holes.jsonl",
        ("1 of 4 rows are not in the format alpaca", "holes.jsonl:3  column `output` is missing", "fix these rows"),
    ),
    "an unknown method": ("qlorra", ("unknown method 'qlorra'", "did you mean qlora?")),
    "no method": ("--data rows.jsonl", ("no method given", "mlflow-ft train METHOD; methods: ")),
    "an unknown key": (
        "lora --adapter.rnak 4",
        ("--adapter.rnak (command line)  unknown key; did you mean adapter.r",),
    ),
    "an unknown key in a file": ("lora --config bad.yaml", ("bad.yaml line 3  adapter.rnak", "did you mean adapter.r")),
    "a bad value": (
        "lora --learning_rate fast --adapter.r 0",
        ("2 problems", '"fast" is not a number above 0', '"0" is not a whole number of at least 1'),
    ),
    "an unknown adapter": ("lora --data rows.jsonl --adapter.kind lorra", ("unknown adapter 'lorra'", "mean lora?")),
    "no such config": ("lora --config none.yaml", ("no config file 'none.yaml'", "looked in {tmp}")),
    "a folder that is no model": (
        "lora --data rows.jsonl --model folder",
        ("model 'folder': the folder {tmp}/folder has no config.json", "save_pretrained"),
    ),
    "a model that is not there": (
        "lora --data rows.jsonl --model ./none",
        ("model './none' is not a model folder", "looked in {tmp}"),
    ),
    "no chat template": (
        "lora --data rows.jsonl --model {untemplated}",
        ("has a tokenizer without a chat template", "--data.chat_template FILE.jinja"),
    ),
    "too few rows": (
        "lora --data rows.jsonl --data.test_size 8",
        ("data.test_size 8 holds out 8 of 8 rows", "lower data.test_size"),
    ),
    "a file for a folder": (
        "lora --data rows.jsonl --output_dir rows.jsonl",
        ("cannot write under the output folder", "--run.output_dir"),
    ),
}


def arguments(line: str, places: Mapping[str, Path]) -> list[str]:
    given = line.format_map(places).split()
    return given if "--model" in given or "--data" not in given else [*given, "--model", str(places["tiny"])]


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_reported_and_the_run_that_mlflow_opened_fails_with_it(
    case: str, places: dict[str, Path], client: MlflowClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, messages = BAD[case]
    before = [model.name for model in client.search_registered_models()]
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    result = run("train", *arguments(line, places))
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    error = result.err[result.err.index("Error: ") :].removeprefix("Error: ").strip()
    for message in messages:
        assert message.format_map(places) in error
    stored = client.get_run(opened)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["mlflow_ft.error"] == error
    assert stored.data.tags["mlflow_ft.stage"]
    assert stored.data.tags["mlflow.note.content"].startswith("**FAILED** in the stage ")
    assert [model.name for model in client.search_registered_models()] == before


def test_a_server_that_does_not_answer_is_reported_before_anything_is_loaded(
    places: dict[str, Path], client: MlflowClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = run("train", *arguments("lora --data rows.jsonl", places))
    assert result.code == 2
    assert "no tracking server answers at http://127.0.0.1:9" in result.err
    assert "set MLFLOW_TRACKING_URI" in result.err
    assert "Traceback" not in result.err
    assert not (places["tmp"] / "outputs").exists()


def test_a_broken_plugin_is_reported_and_strict_makes_it_an_error(
    client: MlflowClient, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "ft_broken-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ft_broken\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[mlflow_ft]\nft_broken = no_such_module\n")
    assert "plugin ft_broken is broken and ignored: ModuleNotFoundError" in run("train", "nothing").err
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.setenv("MLFLOW_FT_STRICT", "1")
    result = run("train", "lora")
    assert result.code == 2
    assert "plugin ft_broken 1.5 is broken" in result.err
    assert client.get_run(opened).info.status == "FAILED"


def start(*given: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A separate process, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "mlflow_ft", "train", *given],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_failed_process_leaves_a_failed_run(places: dict[str, Path], client: MlflowClient) -> None:
    name = "of-its-own"
    completed = start(*arguments("lora --data broken.jsonl", places), MLFLOW_EXPERIMENT_NAME=name)
    assert completed.returncode == 2, completed.stderr
    assert "Traceback" not in completed.stderr
    assert "broken.jsonl:3  malformed JSON: Expecting value" in completed.stderr
    experiment = client.get_experiment_by_name(name)
    assert experiment
    [stored] = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FAILED"
    assert "broken.jsonl:3  malformed JSON" in stored.data.tags["mlflow_ft.error"]
    assert stored.data.tags["mlflow_ft.stage"] == "data"


LONG_WORK = [
    *("train", "save the trained model", "reference logits and answers"),
    *("load base", "loss of base", "answers of base", "load tuned", "loss of tuned", "answers of tuned"),
    *("package merged", "compare merged", "package adapter", "compare adapter", "log merged", "log adapter"),
]
"""What takes long from the training on: each is announced, so that nothing is silent."""


@pytest.mark.slow
def test_json_prints_the_outcome_and_nothing_else_on_stdout(
    tiny_model: Path, tiny_rows: Path, client: MlflowClient
) -> None:
    quick = "--max_steps 1 --max_new_tokens 4 --evaluation.max_rows 2 --eval_steps 1 --registry.model_name told-as-json"
    quick += " --package.round_trip false"
    experiment = client.create_experiment("told-as-json")
    completed = start(
        *("lora", "--model", str(tiny_model), "--data", str(tiny_rows), "--json", *quick.split()),
        MLFLOW_EXPERIMENT_ID=experiment,
    )
    assert completed.returncode == 0, completed.stderr
    told = [line.removesuffix(" ...") for line in completed.stderr.splitlines() if line.endswith(" ...")]
    assert told[told.index("train") :] == LONG_WORK
    outcome = json.loads(completed.stdout, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert set(outcome) == {"run_id", "tracking_uri", "folder", "scores", "worse", "versions"}
    assert client.get_run(outcome["run_id"]).info.status == "FINISHED"
    assert {version["name"] for version in outcome["versions"]} == {"told-as-json", "told-as-json-adapter"}
    assert outcome["scores"]["tuned"]["loss"] > 0
    for name in ("told-as-json", "told-as-json-adapter"):
        client.delete_registered_model(name)


def test_a_nan_score_is_null_in_json() -> None:
    scores = SimpleNamespace(base=[Score.mean("accuracy", [None])], tuned=[Score.mean("accuracy", [0.5])], worse=None)
    outcome = SimpleNamespace(run_id="r", tracking_uri="u", folder="f", scores=scores, versions=())
    result = json.loads(json.dumps(as_dict(cast(Outcome, outcome)), allow_nan=False))
    assert result["scores"] == {"base": {"accuracy": None}, "tuned": {"accuracy": 0.5}}


PAIRS: Mapping[str, dict[str, Any]] = {
    "qlora --run.name --json": {"arguments": ("qlora", "--run.name", "--json"), "json": False},
    "qlora --run.name -1 --json": {"arguments": ("qlora", "--run.name", "-1"), "json": True},
    "qlora --json --run.name --help": {"arguments": ("qlora", "--run.name", "--help"), "json": True},
    "qlora --max_steps -1 --quiet": {"arguments": ("qlora", "--max_steps", "-1"), "quiet": True},
    "qlora --run.name=--quiet --json": {"arguments": ("qlora", "--run.name=--quiet"), "json": True, "quiet": False},
    "--quiet qlora": {"arguments": ("qlora",), "json": False, "quiet": True},
    "qlora --json true --quiet false": {"arguments": ("qlora",), "json": True, "quiet": False},
    "qlora --json=false --quiet=TRUE": {"arguments": ("qlora",), "json": False, "quiet": True},
}


@pytest.mark.parametrize("line", PAIRS)
def test_a_value_that_begins_with_a_dash_stays_a_value(line: str) -> None:
    parsed = command.make_context("train", line.split()).params
    assert {key: parsed[key] for key in PAIRS[line]} == PAIRS[line]


def test_a_switch_with_an_empty_value_is_off(run: Run) -> None:
    parsed = command.make_context("train", ["qlora", "--json", "", "--quiet"]).params
    assert (parsed["json"], parsed["quiet"]) == (False, True)
    result = run("train", "qlora", "--json=perhaps")
    assert result.code == 2
    assert "'perhaps' is not true or false" in result.err


def test_help_names_every_setting_and_switch(run: Run) -> None:
    for given in (["--help"], ["qlora", "-h"], ["qlora", "--json", "--help"]):
        result = run("train", *given)
        assert result.code == 0
        assert result.err == ""
        for option in ("--config FILE", "--json", "--quiet", "--training.learning_rate", "--registry.alias"):
            assert option in result.out


def test_help_of_the_program_names_every_command_and_exit_code(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for text in ("train ", "show ", "plugins ", "sync ", "Exit codes: 0 success; 1 refused"):
        assert text in result.out


def test_an_unknown_command_is_wrong_input(run: Run) -> None:
    result = run("trian")
    assert (result.code, result.out) == (2, "")
    assert "No such command 'trian'. Did you mean train?" in result.err


def test_a_method_is_no_command_and_the_error_says_which_is(run: Run) -> None:
    assert "No such command 'qlora'. It is a method: mlflow-ft train qlora" in run("qlora", "--model", "tiny").err


def test_sync_of_a_folder_that_is_none(run: Run, tmp_path: Path) -> None:
    result = run("sync", tmp_path)
    assert result.code == 2
    assert f"Error: {tmp_path} is not a run's folder" in result.err
    assert "pass the folder that the run printed" in result.err
    result = run("sync", tmp_path / "none")
    assert result.code == 2
    assert "does not exist" in result.err


def test_every_registered_method_is_listed(client: MlflowClient, run: Run) -> None:
    result = run("train")
    assert result.code == 2
    for registered in plugins.load().registered:
        if registered.kind == "trainers":
            assert registered.record.name in result.err
