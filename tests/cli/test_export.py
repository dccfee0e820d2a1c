"""mlflow-ft export: a version, a folder, an adapter; the export is complete, equals the model, and is logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.operations import whole_folder
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.tracking import verify_manifest
from tests.cli.conftest import Run


@pytest.mark.slow
def test_a_version_in_four_bits(client: MlflowClient, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Of a QLoRA training: merged into the dequantised base, it would snap back to the grid and lose the adapter."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(24))
    settings = {"max_steps": 8, "learning_rate": 0.02, "max_new_tokens": 4, "evaluation.max_rows": 2}
    settings |= {"model": tiny_model, "data": rows, "registry.model_name": "exporting", "package.round_trip": "false"}
    result = run("train", "qlora", *(f"--{key}={value}" for key, value in settings.items()), "--json")
    assert result.code == 0, result.err
    run_id = json.loads(result.out)["run_id"]

    out = tmp_path / "nf4"
    result = run("export", "exporting@candidate", "--to", "nf4", "--out", out, "--json")
    assert result.code == 0, result.err
    assert "the adapter is merged into the original weights instead" in result.err
    record = json.loads(result.out)
    assert record["compared_with"] == "the trained model, on held-out rows"
    assert record["logged"] == f"runs:/{run_id}/exports/nf4"
    assert (record["model"], record["already"]) == ("models:/exporting/1", False)
    verify_manifest(out)
    version = client.get_model_version("exporting", "1")
    metrics = client.get_run(run_id).data.metrics
    assert version.tags["mlflow_ft.export.nf4"] == record["logged"]
    assert metrics["parity/nf4/kl_mean"] == record["parity"]["kl_mean"] < 0.1
    kept = {Path(file.path).name for file in client.list_artifacts(run_id, "exports/nf4")}
    assert {"config.json", "model.safetensors", "export.json", "manifest.json", "chat_template.jinja"} <= kept

    again = json.loads(run("export", "exporting/1", "--to", "nf4", "--out", out, "--json").out)
    assert (again["already"], again["parity"]) == (True, record["parity"])
    (out / "config.json").write_text("{}")
    result = run("export", "exporting/1", "--to", "nf4", "--out", out)
    assert result.code == 1
    assert "config.json" in result.err

    result = run("export", "exporting/1", "--to", "int8", "--out", tmp_path / "int8", "--max_kl", "1e-12")
    assert result.code == 1
    assert "'int8' is not the model that was trained" in result.err
    assert "Look at the run's table parity/int8.json" in result.err
    [failed] = client.search_runs(["0"], max_results=1)
    assert (failed.info.status, failed.info.run_name) == ("FAILED", "export int8 of models:/exporting/1")
    assert [file.path for file in client.list_artifacts(failed.info.run_id, "parity")] == ["parity/int8.json"]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not (tmp_path / "int8").exists()
    assert "mlflow_ft.export.int8" not in client.get_model_version("exporting", "1").tags

    result = run("export", "exporting-adapter/1", "--to", "nf4", "--out", tmp_path / "adapter")
    assert result.code == 2
    assert "is an adapter\n  merge it first" in result.err


def test_a_folder_is_compared_with_itself_and_a_stopped_export_is_not_reused(
    client: MlflowClient, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    runs = len(client.search_runs(["0"]))
    result = run("export", tiny_model, "--to", "int8", "--out", tmp_path / "first", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["compared_with"], record["logged"]) == ("the model that it was made of", "")
    left = whole_folder.place(tmp_path / "second", record["fingerprint"])
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    result = run("export", tiny_model, "--to", "int8", "--out", tmp_path / "second")
    assert result.code == 0, result.err
    names = {file.name for file in (tmp_path / "second").iterdir()}
    assert names == {file.name for file in (tmp_path / "first").iterdir()}
    assert not left.exists()
    result = run("export", tiny_model, "--to", "int8", "--out", tmp_path / "third", "--max_kl", "1e-12")
    assert result.code == 1
    assert f"Look at {tmp_path / 'third.parity.json'}" in result.err
    assert json.loads((tmp_path / "third.parity.json").read_text())[-1]["kl"] >= 0
    assert len(client.search_runs(["0"])) == runs


STOPPED = """
import os, signal, sys
from mlflow_ft.engine.merging import quantised
def stop(*_, **__): os.kill(os.getpid(), signal.SIGTERM)
quantised.write = stop
from mlflow_ft import cli
cli.main()
"""


@pytest.mark.slow
def test_a_stopped_export_is_a_killed_run(client: MlflowClient, tiny_model: Path, tmp_path: Path) -> None:
    environ = os.environ | {"MLFLOW_RUN_ID": client.create_run("0").info.run_id}
    arguments = ["export", str(tiny_model), "--to", "int8", "--out", str(tmp_path / "int8")]
    completed = subprocess.run([sys.executable, "-c", STOPPED, *arguments], env=environ, timeout=120)
    assert completed.returncode == 128 + signal.SIGTERM
    stopped = client.get_run(environ["MLFLOW_RUN_ID"])
    assert (stopped.info.status, stopped.data.tags["mlflow_ft.stage"]) == ("KILLED", "export")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no model given"),
        (("nothing",), "no form"),
        (("nothing", "--to", "nf5"), "did you mean nf4?"),
        (("nothing", "--to", "nf4"), "'nothing' is not a known model"),
        (("nothing", "--to", "nf4", "--max_kl", "much"), "'much' is not a number"),
    ],
)
def test_wrong_input_is_reported(client: MlflowClient, run: Run, words: tuple[str, ...], message: str) -> None:
    result = run("export", *words)
    assert result.code == 2
    assert message in result.err
