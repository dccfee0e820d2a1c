"""Several processes, a new store, and missing paths: public reports about starting a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Run

METHODS = ("lora", "full", "dpo", "grpo", "ppo")


@pytest.mark.parametrize("method", METHODS)
def test_a_process_without_a_number_makes_no_run(
    run: Run, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """mlflow#11782 and #5817: two processes made two runs and four crossed versions."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = len(client.search_runs(["0"]))
    result = run("train", method)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "2 processes" in result.err
    assert len(client.search_runs(["0"])) == before


def test_an_error_before_the_run_ends_all_processes_of_torchrun(tmp_path: Path) -> None:
    """The others wait for rank 0, which has found that the data is not there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*command, "-m", "mlflow_ft", "train", "lora", "--data", "nowhere.jsonl"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"},
    )
    assert process.returncode
    assert process.stderr.count("Error: the data file 'nowhere.jsonl' does not exist") == 1
    assert "forcefully" not in process.stderr  # the other heeded the SIGTERM of torchrun
    assert list(tmp_path.iterdir()) == []


def test_every_path_that_is_not_there_is_reported_before_a_run_is_opened(
    run: Run, client: MlflowClient, tmp_path: Path
) -> None:
    """A newcomer's walk: each mistyped path left a FAILED run with a random name, after seven seconds."""
    before = len(client.search_runs(["0"]))
    named = {
        "data": "rowz.jsonl",
        "data.eval_path": "held.parquet",
        "model": "./no-model",
        "data.chat_template": "no.jinja",
        "registry.gates": "no.yaml",
        "checks.benchmarks": "no.csv",
        "evaluation.guards": "safe=no.json",
        "model.init_from": "models:/nobody@champion",
    }
    result = run("train", "lora", *(f"--{path}={value}" for path, value in named.items()))
    assert result.code == 2
    first, second, *_ = result.err.splitlines()
    assert first == "check settings, model, data and machine ..."
    assert second == f"Error: {len(named)} problems; no run was opened"
    for path, value in named.items():
        line = next(line for line in result.err.splitlines() if line.startswith(f"  --{path} "))
        assert value.partition("=")[2] in line
    assert len(client.search_runs(["0"])) == before
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_path_is_one_error(run: Run, client: MlflowClient, tmp_path: Path) -> None:
    result = run("train", "lora", "--data", "rowz.jsonl")
    assert result.code == 2
    assert [line for line in result.err.splitlines() if line.startswith("Error")] == [
        "Error: the data file 'rowz.jsonl' does not exist"
    ]


def test_rows_of_another_kind_and_of_no_kind_open_no_run(run: Run, client: MlflowClient, tmp_path: Path) -> None:
    before = len(client.search_runs(["0"]))
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(4))
    odd = write_jsonl(tmp_path / "odd.jsonl", [{"x": 1, "y": 2}])
    assert "dpo learns from preferences" in run("train", "dpo", "--data", rows).err
    assert "odd.jsonl:1: the rows have no known format" in run("train", "lora", "--data", odd).err
    assert "of a different kind" in run("train", "lora", "--data", rows, "--data.eval_path", pairs(tmp_path)).err
    assert len(client.search_runs(["0"])) == before


def pairs(folder: Path) -> Path:
    return write_jsonl(folder / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])


@pytest.mark.parametrize("command", [["prepare"], ["data", "show"], ["data", "check"], ["align"]])
def test_other_commands_look_first_too(run: Run, client: MlflowClient, command: list[str]) -> None:
    before = len(client.search_runs(["0"]))
    key = "--sft.data" if command == ["align"] else "--data"
    result = run(*command, key, "rowz.jsonl")
    assert result.code == 2
    assert "the data file 'rowz.jsonl' does not exist" in result.err
    assert len(client.search_runs(["0"])) == before


def test_the_run_that_mlflow_opened_ends_failed_with_the_message(
    run: Run, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    assert run("train", "lora", "--data", "rowz.jsonl").code == 2
    info = client.get_run(opened)
    assert info.info.status == "FAILED"
    assert "rowz.jsonl" in info.data.tags["mlflow_ft.error"]
