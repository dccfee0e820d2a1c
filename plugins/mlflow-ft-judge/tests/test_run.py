"""The judge in whole runs and promotions: scores, tables, gates, and no key anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.config.gates import read_gates
from mlflow_ft.operations.promoting.decision import PromotionRequest
from mlflow_ft.operations.promoting.promote import promote
from mlflow_ft.progress import Progress

LONGER = json.dumps({"reason": "longer", "winner": "A"}), json.dumps({"reason": "longer", "winner": "B"})


@pytest.fixture
def settings(tiny_model, tiny_rows):
    return {"model": tiny_model, "data": tiny_rows, "evaluation.evaluators": "[loss,judge]"}


def of(judge, **more):
    return {f"plugins.judge.{name}": value for name, value in {"endpoint": judge.url, "model": "s", **more}.items()}


def test_a_run_is_judged_and_no_key_is_kept_anywhere(settings, serve, fine_tune, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    judge = serve()
    outcome = fine_tune("lora", **settings, **of(judge, api_key_env="MY_KEY", price_in=1.0))
    run = MlflowClient().get_run(outcome.run_id)
    assert {"eval/base/judge/helpfulness", "eval/tuned/judge/helpfulness", "eval/tuned/judge/win_rate"} <= set(
        run.data.metrics
    )
    assert run.data.metrics["eval/base/judge/win_rate"] == 0.5
    assert run.data.metrics["eval/tuned/judge/cost"] > 0
    assert run.data.params["cfg.plugins.judge.model"] == "s"
    assert {headers["Authorization"] for headers in judge.headers} == {"Bearer sk-very-secret"}
    rows = json.loads(Path(artifact(outcome.run_id, "eval/rows.json")).read_text())
    assert len(rows["scores"]["tuned"]["judge/win_rate"]) == 4
    table = json.loads(Path(artifact(outcome.run_id, "eval/judge/tuned.json")).read_text())
    assert {"prompt", "answer", "base", "helpfulness", "helpfulness, reason", "win"} <= set(table["columns"])
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in kept if b"sk-very-secret" in file.read_bytes()]


def artifact(run_id, path):
    return MlflowClient().download_artifacts(run_id, path)


def test_without_an_endpoint_nothing_is_judged(tiny_model, tiny_rows, fine_tune):
    outcome = fine_tune("lora", model=tiny_model, data=tiny_rows)
    assert not [name for name in MlflowClient().get_run(outcome.run_id).data.metrics if "judge" in name]


def promotion(version, gates):
    request = PromotionRequest(
        name="tiny-lora", version=str(version), by="ann", now_ms=0, gates=read_gates(gates, place="gates.yaml")
    )
    return promote(request, plugins=plugins.load(), progress=Progress(quiet=True))
