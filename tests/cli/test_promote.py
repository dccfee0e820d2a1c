from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cli.conftest import Run
from tests.operations.promoting.test_promote import Shop


@pytest.fixture
def shop(client: MlflowClient, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    """Versions of a registered model of this test's own."""
    return Shop(client=client, folder=tmp_path / "models")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def test_a_promotion_reports_every_gate(run: Run, shop: Shop, name: str) -> None:
    shop.version(name=name)
    result = run("promote", name, "--version", 1, "--by", "ann")
    assert (result.code, result.out) == (0, "")
    for gate in ("finished", "parity", "data-checks", "beats-base loss"):
        assert gate in result.err
    assert f"{name} version 1 is now the champion; there was none before" in result.err
    assert "decision  runs:/" in result.err
    again = run("promote", name, "--version", 1)
    assert again.code == 0
    assert f"is already the champion of {name}; nothing was moved" in again.err


def test_a_refusal_ends_with_1_and_names_the_gates(run: Run, shop: Shop, name: str) -> None:
    shop.version(name=name)
    shop.version(name=name, rows={"loss": [2.0] * 40}, kl="0.5")
    assert run("promote", name, "--version", 1, "--quiet").code == 0
    result = run("promote", name, "--version", 2)
    assert result.code == 1
    assert result.err.count("FAIL") == 2
    assert "not passed: parity, beats-champion loss" in result.err
    assert shop.champion(name) == 1


def test_a_waiver_is_shown_in_the_table_at_the_end_and_in_the_history(
    run: Run, shop: Shop, name: str, tmp_path: Path
) -> None:
    shop.version(name=name, base_rows={"loss": [0.5] * 40})
    refused = run("promote", name, "--version", 1)
    assert refused.code == 1
    assert 'to waive it: `waive: {beats-base: "WHY"}` in a gates file' in refused.err
    gates = tmp_path / "gates.yaml"
    gates.write_text("waive: {beats-base: a rehearsal}\n")
    result = run("promote", name, "--version", 1, "--gates", gates)
    assert result.code == 0
    assert "waived: a" in result.err  # in the table, where it may be wrapped
    assert "\nbeats-base waived: a rehearsal\n" in result.err
    assert "beats-base waived: a rehearsal" in run("history", name).out


@pytest.mark.parametrize("form", ["{}/1", "{}@first", "models:/{}/1", "models:/{}@first"])
def test_a_version_is_named_as_for_other_commands(run: Run, shop: Shop, form: str) -> None:
    shop.version(name="named")
    shop.client.set_registered_model_alias("named", "first", "1")
    result = run("promote", form.format("named"), "--dry-run")
    assert (result.code, "named version 1: would be promoted" in result.err) == (0, True)


def test_json_reports_the_same_on_stdout(run: Run, shop: Shop, name: str, tmp_path: Path) -> None:
    shop.version(name=name)
    gates = tmp_path / "gates.yaml"
    gates.write_text("max_scores: {loss: 0.5}\n")
    result = run("promote", name, "--version", 1, "--gates", gates, "--dry-run", "--json")
    assert result.code == 1
    decision = json.loads(result.out)
    assert (decision["outcome"], decision["passed"], decision["gates_from"]) == ("would be refused", False, str(gates))
    [verdict] = [gate for gate in decision["gates"] if gate["gate"] == "scores"]
    assert verdict["numbers"] == {"value": 1.0, "bound": 0.5}
    assert shop.champion(name) is None


def test_history_and_rollback(run: Run, shop: Shop, name: str) -> None:
    for number, loss in enumerate((2.0, 1.0), 1):
        shop.version(name=name, rows={"loss": [loss] * 40})
        assert run("promote", name, "--version", number, "--by", "ann", "--quiet").code == 0
    assert run("rollback", name).code == 2  # a reason is needed
    result = run("rollback", name, "--reason", "rude in use", "--by", "bob")
    assert (result.code, result.out) == (0, f"{name} version 1 is the champion again; it was version 2\n")
    lines = run("history", name).out.splitlines()
    assert [line.split("  ")[1:4] for line in lines[:3]] == [
        ["promote", "none -> 1", "by ann"],
        ["promote", "1 -> 2", "by ann"],
        ["rollback", "2 -> 1", "by bob"],
    ]
    assert lines[2].endswith("rude in use")
    assert lines[3] == f"champion of {name}: version 1"
    history = json.loads(run("history", name, "--json").out)
    assert (history["version"], history["moved_by_hand"]) == (1, False)
    assert [(move["before"], move["after"]) for move in history["moves"]] == [(None, 1), (1, 2), (2, 1)]
    again = run("rollback", name, "--reason", "once more", "--json")
    assert again.code == 1
    assert "is the first champion" in again.err
    shop.client.set_registered_model_alias(name, "champion", "2")
    assert "set outside mlflow-ft" in run("history", name).out


def test_wrong_input_is_reported_and_exits_with_2(run: Run, shop: Shop, name: str, tmp_path: Path) -> None:
    shop.version(name=name)
    assert "no registered model given" in run("promote").err
    assert "2 names were given" in run("promote", name, name).err
    assert "unknown option --verson" in run("promote", name, "--verson", 1).err
    assert "cannot read" in run("promote", name, "--gates", tmp_path / "gone.yaml").err
    assert "no registered model" in run("history", "gone").err
    assert "no registered model" in run("rollback", "gone", "--reason", "x").err
    for arguments in (["promote"], ["promote", name, "--version", "7"], ["history", "gone"]):
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "Traceback" not in result.err


def test_empty_parameters_of_mlflow_run_count_as_not_given(
    run: Run, shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.version(name=name)
    own = shop.client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    result = run("promote", "--name", name, "--version", "1", "--to", "", "--gates", "", "--dry-run", "")
    assert result.code == 0
    assert shop.champion(name) == 1
    [kept] = shop.client.list_artifacts(own, "promotion")
    assert kept.path.startswith("promotion/champion-version-1-")


def test_a_refusal_is_recorded_on_the_run_that_mlflow_opened(
    run: Run, shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.version(name=name, kl="0.5")
    own = shop.client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    assert run("promote", "--name", name, "--version", "1").code == 1
    stored = shop.client.get_run(own)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["mlflow_ft.error"] == "not passed: parity"
    assert stored.data.tags["mlflow_ft.stage"] == "promote"


def test_a_wrong_request_is_recorded_on_the_run_that_mlflow_opened(
    run: Run, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shop.client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    assert run("promote", "--name", "gone").code == 2
    stored = shop.client.get_run(own)
    assert stored.info.status == "FAILED"
    assert "the registry has no version of 'gone' with the alias 'candidate'" in stored.data.tags["mlflow_ft.error"]
