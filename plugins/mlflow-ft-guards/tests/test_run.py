"""Whole runs that name the sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.errors import ConfigError
from mlflow_ft.testing import write_jsonl


def test_a_run_scores_all_sets_by_name(fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path) -> None:
    own = {"evaluation.guards": "general=builtin,sums=builtin/arithmetic", "evaluation.max_rows": 200}
    outcome = fine_tune("lora", model=tiny_model, data=tiny_rows, **own)
    client = MlflowClient()
    metrics = client.get_run(outcome.run_id).data.metrics
    assert {name for name in metrics if name.startswith("eval/tuned/general/")} == {
        "eval/tuned/general/rules",
        *(f"eval/tuned/general/rules/{name}" for name in ("arithmetic", "instructions", "json", "languages")),
        "eval/tuned/general/rules/refusals",
    }
    assert metrics["eval/tuned/general/rules"] < 0.05  # it babbles
    assert metrics["eval/tuned/general/rules/arithmetic"] == metrics["eval/tuned/sums/rules"]
    version = outcome.versions[0]
    card = client.get_model_version(version.name, str(version.version)).description
    assert "guard set `general`: 180 rows" in card
    assert "guard set `sums`: 40 rows" in card


def test_rules_of_your_own_rows_are_checked_too(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    """Every answer of a tiny model has a word that is not in this list, and none has a list of JSON."""
    rows = [{"prompt": f"say {word}", "rules": ["lacks:zzzz"]} for word in ("red", "blue", "green")]
    file = write_jsonl(tmp_path / "own.jsonl", [*rows, {"prompt": "say it", "rules": ["items:3"]}])
    outcome = fine_tune("lora", model=tiny_model, data=tiny_rows, **{"evaluation.guards": f"own={file}"})
    metrics = MlflowClient().get_run(outcome.run_id).data.metrics
    assert metrics["eval/tuned/own/rules"] == 0.75
    assert "eval/tuned/own/rules/" not in metrics


def test_a_misspelt_set_is_refused_with_the_nearest(
    fine_tune: Callable[..., Any], tiny_rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no guard set 'builtin/jsn'") as refused:
        fine_tune("lora", model=tmp_path / "none", data=tiny_rows, **{"evaluation.guards": "a=builtin/jsn"})
    assert "did you mean builtin/json?" in str(refused.value)
