"""AdaLoRA reduces ranks on schedule, and keeps its factors near orthogonal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig

from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import adalora, sft, trainable
from mlflow_ft.errors import ConfigError

Bencher = Callable[..., Any]
SETTINGS = {"adapter.kind": "adalora", "adapter.r": 4, "max_steps": 12, "learning_rate": 1e-2}


def test_ranks_are_taken_away_until_the_asked_ones_are_left(bench: Bencher) -> None:
    setup = bench("lora", **SETTINGS)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    layers = 14
    assert model.module.peft_config["default"].init_r == 6
    trained = sft.train(setup.job, setup.data, model)
    pattern = PeftConfig.from_pretrained(trained.adapter).rank_pattern
    assert len(pattern) == layers
    assert sum(sum(ranks) for ranks in pattern.values()) == 4 * layers
    assert len({sum(ranks) for ranks in pattern.values()}) > 1  # some layers keep more


def test_a_layer_without_a_rank_comes_back_and_merges(bench: Bencher, tmp_path: Path) -> None:
    setup = bench("lora", **(SETTINGS | {"adapter.r": 1}))
    trained = setup.train()
    assert 0 in {sum(ranks) for ranks in PeftConfig.from_pretrained(trained.adapter).rank_pattern.values()}
    reference = trained.folder / "reference.safetensors"
    assert parity.compare(loading.load_trained(setup.job, setup.data, trained), reference)["kl_max"] < 1e-9
    fold.merge(setup.job, trained, tmp_path)
    assert parity.compare(loading.load_saved(setup.job.config, setup.base, tmp_path), reference)["kl_max"] < 1e-9


def test_the_schedule_is_of_the_steps_that_there_are(bench: Bencher) -> None:
    setup = bench("lora", **SETTINGS)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    sft.train(setup.job, setup.data, model)
    settings = model.module.peft_config["default"]
    assert (settings.total_step, settings.tinit, settings.tfinal) == (12, 1, 3)


@pytest.mark.parametrize(("steps", "options"), [(12, "tinit=6,tfinal=6"), (12, "tinit=0,tfinal=11"), (1, "tinit=0")])
def test_a_schedule_without_room_is_refused(bench: Bencher, steps: int, options: str) -> None:
    with pytest.raises(ConfigError, match=f"leave none of the {steps} steps"):
        bench("lora", **(SETTINGS | {"max_steps": steps, "adapter.options": options})).train()


def test_the_gradient_is_that_of_the_paper(bench: Bencher) -> None:
    setup = bench("lora", **SETTINGS)
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    factors = {name: weight for name, weight in module.named_parameters() if "lora_A" in name or "lora_B" in name}
    penalty = torch.stack(
        [
            torch.linalg.matrix_norm((w @ w.T if "lora_A" in name else w.T @ w) - torch.eye(6))
            for name, w in factors.items()
        ]
    ).mean()
    penalty.backward()
    gradients = adalora.orthogonality(module.base_model)
    assert len(gradients) == len(factors) == 28
    for weight, gradient in gradients:
        torch.testing.assert_close(gradient, weight.grad)


def test_the_penalty_moves_the_factors(bench: Bencher) -> None:
    def off(weight: str) -> float:
        setup = bench("lora", **SETTINGS, **{"adapter.options": f"orth_reg_weight={weight}"})
        model = trainable.prepare(setup.job, setup.data, setup.base)
        sft.train(setup.job, setup.data, model)
        factors = [w.detach() for name, w in model.module.named_parameters() if "lora_A" in name]
        return sum(float(torch.linalg.matrix_norm(w @ w.T - torch.eye(6))) for w in factors)

    assert off("5.0") < off("0.0")
