"""The template works as a user's plugin would: installed, found by its entry point, used by a whole run."""

from __future__ import annotations

import json

import mlflow_ft_template
import pytest
from mlflow import MlflowClient

from mlflow_ft import DataError, plugins
from mlflow_ft.testing import write_jsonl


def cards(count):
    return [{"front": f"how many are {n} and {n}", "back": f"{2 * n}", "deck": "sums"} for n in range(count)]


def test_contract(plugin_contract):
    plugin_contract(mlflow_ft_template, rows={"flash-card": cards(24)}, gates={"brief": {"most": 1.5}})


def test_it_is_found_by_its_entry_point():
    [info] = [info for info in plugins.load().infos if info.name == "template"]
    assert (info.status, info.module) == ("active", "mlflow_ft_template")
    assert len(info.sha256) == 64


def test_a_run_uses_format_evaluator_trainer_and_callback(tiny_model, tmp_path, fine_tune):
    data = write_jsonl(tmp_path / "cards.jsonl", cards(20))
    outcome = fine_tune("gentle-lora", model=tiny_model, data=data, **{"evaluation.guards": "facts=planets"})
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    assert run.data.metrics["eval/tuned/facts/loss"] > 0
    assert run.data.tags["mlflow_ft.data_format"] == "flash-card"
    assert run.data.params["cfg.adapter.r"] == "4"
    assert run.data.metrics["eval/tuned/length_ratio"] >= 0
    assert run.data.metrics["template/steps"] == 2
    assert "template" in run.data.tags["mlflow_ft.plugins"]


def test_its_veto_stops_the_run_before_anything_is_spent(tiny_model, tmp_path, fine_tune):
    data = write_jsonl(tmp_path / "cards.jsonl", cards(4))
    with pytest.raises(DataError, match="at least 4 rows"):
        fine_tune("gentle-lora", model=tiny_model, data=data)
    client = MlflowClient()
    run = client.search_runs(["0"])[0]
    assert run.info.status == "FAILED"
    assert "at least 4 rows" in run.data.tags["mlflow_ft.error"]
    assert not client.search_registered_models()


def test_a_row_that_is_not_a_card_is_reported_with_its_line(tiny_model, tmp_path, fine_tune):
    data = write_jsonl(tmp_path / "cards.jsonl", [*cards(6), {"front": "and this", "back": ""}])
    with pytest.raises(DataError, match=r"cards\.jsonl:7  `back` is missing or empty"):
        fine_tune("gentle-lora", model=tiny_model, data=data)


def test_its_gate_is_applied_if_the_gates_file_sets_it(tiny_model, tmp_path, fine_tune):
    from mlflow_ft.config.gates import read_gates
    from mlflow_ft.operations.promoting.decision import PromotionRequest
    from mlflow_ft.operations.promoting.promote import promote
    from mlflow_ft.progress import Progress

    data = write_jsonl(tmp_path / "cards.jsonl", cards(20))
    outcome = fine_tune("gentle-lora", model=tiny_model, data=data)
    ratio = MlflowClient().get_run(outcome.run_id).data.metrics["eval/tuned/length_ratio"]
    passed = {}
    for most in (ratio + 0.1, ratio - 0.1):
        gates = read_gates(f"options: {{brief: {{most: {most}}}}}", place="gates.yaml")
        name = outcome.versions[0].name
        request = PromotionRequest(name=name, version="1", by="ann", now_ms=0, gates=gates, dry_run=True)
        decision = promote(request, plugins=plugins.load(), progress=Progress(quiet=True))
        passed |= {most > ratio: "brief" not in decision.failed}
    assert passed == {True: True, False: False}


def test_its_exporter_is_compared_and_logged(tiny_model, tmp_path, fine_tune, capsys):
    from mlflow_ft.cli import cli

    data = write_jsonl(tmp_path / "cards.jsonl", cards(20))
    outcome = fine_tune("gentle-lora", model=tiny_model, data=data)
    name, out = outcome.versions[0].name, tmp_path / "exported"
    capsys.readouterr()
    cli.main(["export", f"{name}/1", "--to", "bfloat16", "--out", str(out), "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert record["compared_with"] == "the trained model, on held-out rows"
    assert 0 < record["parity"]["kl_mean"] < 0.02, "16 bits round, but not far"
    assert record["logged"] == f"runs:/{outcome.run_id}/exports/bfloat16"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    client = MlflowClient()
    assert client.get_model_version(name, "1").tags["mlflow_ft.export.bfloat16"] == record["logged"]
    assert client.get_run(outcome.run_id).data.metrics["parity/bfloat16/kl_mean"] == record["parity"]["kl_mean"]
    logged = {file.path for file in client.list_artifacts(outcome.run_id, "exports/bfloat16")}
    assert {"exports/bfloat16/model.safetensors", "exports/bfloat16/tokenizer.json"} <= logged


def test_its_exporter_refuses_a_model_that_generates_no_text(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    reason = "LlamaForSequenceClassification does not generate text"
    assert [mlflow_ft_template.unsuitable(folder) for folder in (tmp_path, None)] == [reason, None]
