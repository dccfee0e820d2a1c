"""The estimate of memory: what is held, what passes take, and what a real training measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig

from mlflow_ft.engine import frozen_head
from mlflow_ft.engine.memory import depth
from mlflow_ft.engine.memory.configured import setting_of
from mlflow_ft.engine.memory.estimating import estimate
from mlflow_ft.engine.memory.values import Estimate, Setting
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import trainable
from tests.engine.conftest import Bench

Make = Callable[..., Bench]
LORA = LoraConfig(r=8, target_modules="all-linear")
ROOT = Path(__file__).parents[3]
OTHER = """
import json, sys
sys.path.insert(0, "benchmarks")
import memory
memory.SIZES = {**memory.SIZES, "other": json.loads(sys.argv[1])}
print(json.dumps(memory.measure(memory.Case(name="other", **json.loads(sys.argv[2])))))
"""


def of(model: Path, **settings: Any) -> Estimate:
    return estimate(Setting(model=model, **{"adapter": LORA, "batch": 4, "length": 64, "eval_batch": 1} | settings))


def held(module: Any, *, trained: bool) -> int:
    weights = [weight for weight in module.parameters() if weight.requires_grad is trained]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def test_what_is_held_is_what_training_holds(bench: Make) -> None:
    setup = bench("lora")
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    parts = estimate(setting_of(setup.job.config, setup.job.registry, setup.base))["training"].parts
    assert parts["adapter"] == held(module, trained=True)
    assert parts["optimizer"] == 2 * parts["adapter"]
    assert parts["weights"] == pytest.approx(held(module, trained=False), rel=0.01)  # and buffers


def test_a_quantised_base_is_held_with_its_constants(bench: Make) -> None:
    setup = bench("qlora")
    module = loading.load_base(setup.job.config, setup.base)
    parts = estimate(setting_of(setup.job.config, setup.job.registry, setup.base))["training"].parts
    weights = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    assert weights < parts["weights"] < 1.1 * weights  # its constants are no parameters


def test_every_weight_is_held_with_gradient_and_two_moments(tiny_model: Path) -> None:
    parts = of(tiny_model, adapter=None, length=8, batch=1)["training"].parts
    assert parts["optimizer"] == pytest.approx(2 * parts["weights"], rel=0.01)
    assert sum(parts.values()) > 3.9 * parts["weights"]
    assert "adapter" not in parts


def test_checkpointing_leaves_the_inputs_of_layers(tiny_model: Path) -> None:
    kept = of(tiny_model, batch=16).activations
    recomputed = of(tiny_model, batch=16, checkpointing=True).activations
    assert sum(recomputed.values()) < sum(kept.values()) / 4
    assert {"attention", "feed-forward", "norm", "adapter"} <= set(kept)


def test_logits_are_those_of_one_chunk(tiny_model: Path) -> None:
    chunk = of(tiny_model, batch=900)["training"].parts["logits"]
    assert of(tiny_model, batch=1200)["training"].parts["logits"] < 1.2 * chunk, "and gradients of hidden states"
    assert of(tiny_model, batch=900, learned=0.1)["training"].parts.get("logits", 0) < chunk


def test_what_is_computed_again_is_not_kept(tiny_model: Path) -> None:
    kept = of(tiny_model, batch=16).activations
    less = of(tiny_model, batch=16, recomputing=True).activations
    assert sum(less.values()) < 0.75 * sum(kept.values())
    assert less["attention"] == kept["attention"]


def test_fused_adapters_keep_nothing_of_their_own(tiny_model: Path) -> None:
    apart = of(tiny_model, batch=16, recomputing=True).activations
    fused = of(tiny_model, batch=16, recomputing=True, fused=True).activations
    assert apart["adapter"] > 0
    assert "adapter" not in fused
    assert sum(fused.values()) < sum(apart.values())


def test_a_batch_in_parts_takes_what_one_part_takes(tiny_model: Path) -> None:
    part = of(tiny_model, batch=3, length=200, accumulation=2).phases
    assert of(tiny_model, batch=32, length=200, at_once=500).phases == part, "its gradients are there from the first on"
    whole = of(tiny_model, batch=2, length=200)
    assert of(tiny_model, batch=2, length=200, at_once=500) == whole


def test_experts_that_are_balanced_see_the_whole_batch(small: Callable[..., Path]) -> None:
    """In training, a batch with that loss is one part (`InParts.parts`)."""
    model = small("mixtral")
    assert AutoConfig.from_pretrained(model).router_aux_loss_coef
    whole = of(model, batch=8, length=64, dtype="bfloat16")
    assert of(model, batch=8, length=64, at_once=100, dtype="bfloat16") == whole


def test_the_settings_of_a_run_are_those_of_the_estimate(bench: Make) -> None:
    setups = bench("lora"), bench("lora", **{"adapter.fused": "false"})
    settings = [setting_of(setup.job.config, setup.job.registry, setup.base) for setup in setups]
    assert [setting.fused for setting in settings] == [True, False]


@pytest.mark.parametrize(
    ("method", "more"),
    [("dpo", {}), ("orpo", {}), ("kto", {}), ("reward", {"task": "score"}), ("grpo", {})],
)
def test_every_method_has_an_estimate(tiny_model: Path, method: str, more: dict[str, str]) -> None:
    needs = of(tiny_model, method=method, **more)
    assert needs.peak > needs["training"].parts["weights"]
    assert needs["evaluation"].total > 0


def test_full_dpo_holds_a_second_model_unless_its_scores_are_precomputed(tiny_model: Path) -> None:
    both = of(tiny_model, method="dpo", adapter=None)["training"].parts
    alone = of(tiny_model, method="dpo", adapter=None, reference=False)["training"].parts
    assert both["reference"] == both["weights"]
    assert "reference" not in alone


def test_trl_copies_a_tile_of_logits_on_a_cpu_but_not_on_a_gpu(tiny_model: Path) -> None:
    full = {"method": "dpo", "adapter": None, "reference": False, "batch": 32}
    on_cpu, on_gpu = (of(tiny_model, **full, gpu=gpu)["training"].total for gpu in (False, True))
    assert on_cpu > on_gpu + 4 * (2 * 32 * 63 * 512 * 4)  # rows, tokens, words, bytes


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_head_that_is_not_trained_has_one_tile_of_logits(
    tiny_model: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": method, "batch": 32, "reference": False, "gpu": False, "merges": False}
    frozen = of(tiny_model, **settings)["training"].total
    monkeypatch.setattr(frozen_head, "fits_matrix", lambda weight, bias, states: False)
    assert of(tiny_model, **settings, new_tokens=127)["training"].total > frozen + 1.5 * (32 * 63 * 512 * 4)


def test_strategies_spread_what_they_spread(tiny_model: Path) -> None:
    alone, ddp, zero2, zero3 = (
        of(tiny_model, adapter=None, strategy=strategy, processes=4)["training"].parts
        for strategy in ("local", "ddp", "deepspeed-zero2", "deepspeed-zero3")
    )
    assert ddp["communication"] == pytest.approx(ddp["weights"], rel=0.01)
    assert (zero2["weights"], zero2["optimizer"]) == (alone["weights"], alone["optimizer"] // 4)
    assert (zero3["weights"], zero3["optimizer"]) == (-(-alone["weights"] // 4), alone["optimizer"] // 4)


def test_a_deep_model_follows_from_a_shallow_one(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("llama", num_hidden_layers=7)
    setting = Setting(model=model, adapter=LORA, batch=4, length=64)
    continued = estimate(setting)
    monkeypatch.setattr(depth, "_alike", lambda _: 0)  # every layer is run
    whole = estimate(replace(setting, learned=0.999999))  # which the estimate before is not remembered for
    for phase in continued.phases:
        assert phase.total == pytest.approx(whole[phase.name].total, rel=0.03)


@pytest.mark.long
def test_it_agrees_with_a_training_that_is_not_in_the_benchmark() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "vocab_size": 16000}
    case = {"model": "other", "method": "lora", "length": 192, "settings": {"batch": 6, "adapter.r": 32}}
    command = [sys.executable, "-c", OTHER, json.dumps(sizes), json.dumps(case)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert 0.85 < numbers["predicted"] / numbers["measured"] < 1.15


def test_bfloat16_halves_the_weights(tiny_model: Path) -> None:
    assert of(tiny_model)["training"].parts["weights"] == pytest.approx(
        2 * of(tiny_model, dtype="bfloat16")["training"].parts["weights"], rel=0.01
    )
    assert torch.get_default_dtype() == torch.float32
