"""A whole run with benchmarks, and promotions that are decided by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.config.gates import read_gates
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.promoting.decision import Decision, PromotionRequest
from mlflow_ft.operations.promoting.promote import promote
from mlflow_ft.progress import Progress
from mlflow_ft.tracking import contenders

ACC, LOSS = "lm_eval/colours/acc", "loss"


def decided(name: str, version: str, gates: str) -> Decision:
    request = PromotionRequest(
        name=name, version=version, by="ann", now_ms=0, gates=read_gates(gates, place="gates.yaml")
    )
    return promote(request, plugins=plugins.load(), progress=Progress(quiet=True))


def found(decision: Decision, gate: str) -> str:
    return next(judged.verdict.found for judged in decision.judged if judged.gate == gate)


@pytest.mark.slow
def test_a_run_is_scored_and_promotions_compare_by_it(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, task_files: list[str]
) -> None:
    named = ",".join(task_files)
    common = {"model": tiny_model, "data": tiny_rows, "plugins.lm-eval.tasks": named, "registry.model_name": "chat"}
    outcome = fine_tune("full", **common, learning_rate=0.01, max_steps=4)
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    metrics = run.data.metrics
    for model in ("base", "tuned"):
        assert 0 <= metrics[f"eval/{model}/lm_eval/colours/acc"] <= 1
        assert (
            metrics[f"eval/{model}/lm_eval/reverse/misses"] == 1 - metrics[f"eval/{model}/lm_eval/reverse/exact_match"]
        )
        assert {
            file.path.rpartition("/")[2] for file in client.list_artifacts(run.info.run_id, f"eval/lm_eval/{model}")
        } == {
            "results.json",
            "tasks.json",
            "samples_colours.json",
            "samples_reverse.json",
        }
    table = mlflow.load_table("eval/lm_eval/tuned/samples_colours.json", run_ids=[run.info.run_id])
    assert table["acc"].mean() == pytest.approx(metrics["eval/tuned/lm_eval/colours/acc"])
    kept = contenders.read(client, outcome.run_id, "eval/rows.json")
    assert len(kept["scores"]["base"][ACC]) == len(kept["scores"]["tuned"][ACC]) == 12
    assert kept["digests"].keys() == {name for name in kept["scores"]["tuned"] if name.startswith("lm_eval/")}
    assert kept["lower_is_better"]["lm_eval/reverse/misses"] is True
    version = outcome.versions[0]
    card = client.get_model_version(version.name, str(version.version)).description
    assert "On rows of their own, not the held-out ones: `lm_eval/colours/acc`" in card
    assert "`lm_eval/reverse/misses` (lower is better)" in card

    # the gates can ask for it, row by row, and in the direction that the task says
    gates = "waive: {beats-base: only a test of it}\nmin_scores: {lm_eval/colours/acc: 0.0}"
    assert decided("chat", "1", gates).outcome == "promoted"
    fine_tune("full", **common, learning_rate=0.02, max_steps=4, **{"data.test_size": 0.3})
    asked = "beats_champion: {metric: lm_eval/colours/acc, min_rows: 5}\nmax_regression: {lm_eval/reverse/misses: 0.0}"
    decision = decided("chat", "2", asked)
    assert decision.notes == ()  # it is not loaded to be scored again: the benchmark's rows are the same
    assert "on 12 rows" in found(decision, "beats-champion")
    worse = [judged.verdict for judged in decision.judged if judged.gate == "no-regression"]
    assert worse[0].numbers["worse"] == worse[0].numbers["value"] - worse[0].numbers["before"]

    # with other settings it is another measurement
    fine_tune("full", **common, learning_rate=0.01, max_steps=4, **{"plugins.lm-eval.limit": 11})
    decision = decided("chat", "3", asked)
    assert "is on other rows, or was asked otherwise" in found(decision, "beats-champion")
    assert "is on other rows, or was asked otherwise" in found(decision, "no-regression")


def test_an_unknown_task_leaves_no_run(fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluator lm-eval: there is no task file none\.yaml"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"plugins.lm-eval.tasks": "none.yaml"})
    assert not MlflowClient().search_runs(["0"])
