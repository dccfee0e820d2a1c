"""Checkpoints on request: logged models with their step and loss, beside a training that they do not disturb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def weights(outcome: Any) -> dict[str, torch.Tensor]:
    (file,) = (Path(outcome.folder) / "train").glob("*/*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("asked", [("lora", {}), ("lora", {"adapter.init_lora_weights": "pissa"}), ("full", {})])
def test_each_evaluation_leaves_a_model(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, asked: tuple[str, dict[str, Any]]
) -> None:
    method, settings = asked
    common = {"model": tiny_model, "data": tiny_rows, "max_steps": 3, "learning_rate": 0.01, **settings}
    plain = fine_tune(method, **common)
    outcome = fine_tune(method, **common, **{"training.log_checkpoints": "true"})
    client = MlflowClient()
    logged = client.search_logged_models(["0"], filter_string=f"source_run_id = '{outcome.run_id}'")
    models = {model.name: model for model in logged if model.name.startswith("checkpoint")}
    assert sorted(models) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    curve = {point.step: point.value for point in client.get_metric_history(outcome.run_id, "eval/loss")}
    for step in (1, 2, 3):
        model = models[f"checkpoint-{step}"]
        assert str(model.status) == "READY"
        (loss,) = [metric for metric in model.metrics if metric.key == "eval/loss"]
        assert (loss.step, loss.value) == (step, curve[step])
        assert loss.dataset_digest
    outputs = {output.model_id: output.step for output in client.get_run(outcome.run_id).outputs.model_outputs}
    assert outputs[models["checkpoint-2"].model_id] == 2
    assert {version.name for version in outcome.versions} == {version.name for version in plain.versions}

    ours, theirs = weights(outcome), weights(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{models['checkpoint-3'].model_id}"))
    (file,) = (folder / "artifacts/model").glob("*model.safetensors")
    last = load_file(file)
    assert all(torch.equal(last[name], ours[name]) for name in ours)
    answer = mlflow.pyfunc.load_model(str(folder)).predict({"messages": [{"role": "user", "content": "red"}]})
    assert answer["object"] == "chat.completion"
    assert not (Path(outcome.folder) / "checkpoints").exists() or not any(
        (Path(outcome.folder) / "checkpoints").iterdir()
    )
