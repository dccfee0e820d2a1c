"""Public reports on packed rows that see each other, and on mixtures of experts: trained, saved, merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Result, Run
from tests.engine.foreign import base_model, says
from tests.rarely import some_always

Small = Callable[..., Path]
Train = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
QUICK = {
    "max_steps": 2,
    "learning_rate": 1e-2,
    "max_new_tokens": 4,
    "evaluation.max_rows": 2,
    "data.max_length": 128,
    "package.round_trip": "false",
}


@pytest.fixture
def train(run: Run, client: MlflowClient, tmp_path: Path) -> Train:
    """`train(method, model, **settings)`: the command, on a few rows of questions and answers."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(16))

    def call(method: str, model: Path, settings: dict[str, Any]) -> Result:
        given = {"model": model, "data": rows} | QUICK | settings
        return run("train", method, "--json", *(f"--{name}={value}" for name, value in given.items()))

    return call


def outcome(result: Result, client: MlflowClient) -> tuple[Path, dict[str, float]]:
    """The package and the metrics of a training that must have ended well."""
    assert result.code == 0, result.err
    made = json.loads(result.out)
    return Path(made["folder"]) / "package", client.get_run(made["run_id"]).data.metrics


@pytest.mark.parametrize(
    ("report", "kind", "layers"),
    [
        ("ms-swift#9618, #9565", "qwen3_5", "model.layers.0.linear_attn"),
        ("transformers#46859", "qwen3_next", "model.layers.0.linear_attn"),
        ("the same kind", "mamba", "backbone.layers.0.mixer"),
        ("the same kind", "jamba", "model.layers.0.mamba"),
    ],
    ids=str,
)
def test_packing_on_layers_that_keep_a_state(
    train: Train, client: MlflowClient, small: Small, report: str, kind: str, layers: str
) -> None:
    """Rows saw each other, up to 1.9 nats, with exit code 0."""
    result = train("lora", small(kind), {"objective.packing": "true", "experiment": kind})
    assert result.code == 2, result.err
    assert "rows packed together affect each other" in result.err
    assert layers in result.err
    assert "omit it" in result.err
    experiment = client.get_experiment_by_name(kind)
    assert experiment is not None
    (failed,) = client.search_runs([experiment.experiment_id])
    assert failed.info.status == "FAILED"
    assert "train/loss" not in failed.data.metrics, "it is found before the first step"
    assert not client.search_logged_models([experiment.experiment_id])


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_packing_on_attention_alone(train: Train, client: MlflowClient, small: Small, kind: str) -> None:
    """ms-swift#9618: right before, and let pass."""
    _, metrics = outcome(train("lora", small(kind), {"objective.packing": "true"}), client)
    assert "train/loss" in metrics


@pytest.mark.parametrize("method", some_always(["lora", "dora", "qlora"], "lora"))
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_adapters_with_their_defaults_on_fused_experts(
    train: Train, client: MlflowClient, small: Small, kind: str, method: str
) -> None:
    """peft#3009, unsloth#6936, unsloth#11014, axolotl#3515: refused over a pattern that PEFT itself wrote."""
    result = train(method, small(kind), {})
    package, metrics = outcome(result, client)
    assert "the adapter is on k_proj, o_proj, q_proj, v_proj" in result.err
    assert "the experts (experts.down_proj, experts.gate_up_proj)" in result.err
    for form in ("adapter", "merged"):
        assert metrics[f"parity/{form}/kl_mean"] < 1e-3
        assert metrics[f"parity/{form}/kl_share"] < 0.1, "the base alone would have 1"
    assert json.loads((package / "merged" / "config.json").read_text()).get("output_router_logits") is not True


def test_experts_by_the_names_of_their_weights(train: Train, client: MlflowClient, small: Small) -> None:
    """peft#3340, axolotl#3515: `target_parameters`."""
    result = train("lora", small("qwen3_moe"), {"adapter.target_parameters": "experts"})
    _, metrics = outcome(result, client)
    assert "the experts (experts.down_proj, experts.gate_up_proj) are trained" in result.err
    assert metrics["parity/merged/kl_share"] < 0.1


def test_names_of_transformers_4_train_the_experts(train: Train, client: MlflowClient, small: Small) -> None:
    """peft#3009: PEFT reads them as the fused weights, and writes a rank_pattern for them."""
    names = "[q_proj, gate_proj, up_proj, down_proj]"
    result = train("lora", small("qwen3_moe"), {"adapter.target_modules": names})
    _, metrics = outcome(result, client)
    assert "the experts (experts.down_proj, experts.gate_up_proj) are trained" in result.err
    assert metrics["parity/merged/kl_share"] < 0.1


def test_full_tuning_of_a_mixture(train: Train, client: MlflowClient, small: Small) -> None:
    """transformers#42100: a traceback after the training, from the router logits that were switched on."""
    result = train("full", small("qwen3_moe"), {"registry.model_name": "mixture"})
    package, metrics = outcome(result, client)
    assert "train/aux_loss" in metrics
    assert json.loads((package / "model" / "config.json").read_text())["output_router_logits"] is False
    logged = mlflow.pyfunc.load_model("models:/mixture@candidate")
    torch.testing.assert_close(says(logged.unwrap_python_model().model), says(base_model(package / "model")))
    answer = logged.predict({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert answer["choices"][0]["message"]["role"] == "assistant"
