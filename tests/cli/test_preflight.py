"""mlflow-ft preflight: a table, JSON, the exit code, and the run that `mlflow run` opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cli.conftest import Run


def test_a_table_and_exit_code_0(run: Run, client: MlflowClient, tiny_model: Path, tmp_path: Path) -> None:
    before = len(client.search_runs(["0"]))
    result = run("preflight", "lora", "--model", tiny_model, "--output_dir", tmp_path / "out")
    assert result.code == 0, result.err
    assert result.out == ""
    assert "│ tracking store │ ok" in result.err
    assert result.err.splitlines()[-1] == "17 checks: all is well"
    assert len(client.search_runs(["0"])) == before
    assert list(tmp_path.iterdir()) == []


def test_problems_and_exit_code_2(run: Run, client: MlflowClient, tiny_model: Path) -> None:
    result = run("preflight", "lora", "--model", tiny_model, "--data", "rowz.jsonl", "--adapter.kind", "lorra")
    assert result.code == 2
    assert "did you mean lora?" in result.err
    assert result.err.splitlines()[-1].endswith("checks: 2 problems")
    assert "Error" not in result.err


def test_json(run: Run, client: MlflowClient, tiny_model: Path) -> None:
    result = run("preflight", "lora", "--model", tiny_model, "--data", "rowz.jsonl", "--json")
    assert result.code == 2
    outcome = json.loads(result.out)
    assert outcome["ready"] is False
    (problem,) = [check for check in outcome["checks"] if check["state"] == "problem"]
    assert problem["check"] == "data.path"
    assert problem["detail"] == "the data file 'rowz.jsonl' does not exist"
    assert "looked in" in problem["remedy"]
    assert json.loads(run("preflight", "lora", "--model", tiny_model, "--json").out)["ready"] is True


def test_the_run_that_mlflow_opened_fails_with_the_problem(
    run: Run, client: MlflowClient, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    assert run("preflight", "lora", "--model", tiny_model, "--data", "rowz.jsonl").code == 2
    stored = client.get_run(opened)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["mlflow_ft.error"].startswith("the data file 'rowz.jsonl' does not exist")
