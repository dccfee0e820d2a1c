"""The loss that balances the experts of a mixture, and TRL's own output layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from mlflow_ft.engine.loss import full_token_loss, token_loss
from mlflow_ft.engine.models import fused_head, routers
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ConfigError
from tests.engine.models.test_experts import KINDS, loaded
from tests.invariants.test_preference import pairs
from tests.invariants.test_sft import plain_trl

Small = Callable[..., Path]
Bench = Callable[..., Any]
BALANCED = ("qwen3_moe", "mixtral", "gpt_oss", "olmoe", "granitemoe", "jamba", "qwen3_next")


# ---- the loss that balances the experts


@pytest.mark.parametrize("kind", [*KINDS, "llama", "llama4", "minimax"])
def test_which_models_compute_it(small: Small, kind: str) -> None:
    module = loaded(small(kind))
    state = torch.get_rng_state()
    assert routers.balanced(module) is (kind in (*BALANCED, "minimax"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_is_that_of_a_plain_trl_script(bench: Bench, small: Small, tmp_path: Path, method: str) -> None:
    setup = bench(method, model=small("qwen3_moe"), max_steps=4, learning_rate=5e-3)
    setup.train()
    trainer = plain_trl(setup, loaded(setup.base.path), tmp_path, steps=4)
    trainer.train()
    for name in ("loss", "aux_loss"):
        theirs = [entry[name] for entry in trainer.state.log_history if name in entry]
        assert len(theirs) == 4
        assert setup.curve(f"train/{name}") == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("change", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {}])
@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_the_loss_of_the_tokens_is_the_same_in_parts(
    bench: Bench, small: Small, coefficient: float, change: dict[str, Any]
) -> None:
    """8 x 1 equals 4 x 2 but for the loss that balances the experts, which is a mean over parts, not a sum."""
    change = change or {"gradient_checkpointing": True}
    settings = {"per_device_train_batch_size": 8, "max_steps": 4, "learning_rate": 5e-3, "model": small("qwen3_moe")}
    settings["objective.options"] = f"router_aux_loss_coef={coefficient}"
    first, second = (bench("full", **made) for made in (settings, settings | change))
    curves = []
    for each in (first, second):
        each.train()
        loss, balance = each.curve("train/loss"), each.curve("train/aux_loss")
        assert bool(balance) is bool(coefficient)
        curves.append([value - coefficient * more for value, more in zip(loss, balance or [0.0] * 4, strict=True)])
    assert curves[0] == pytest.approx(curves[1], abs=2e-2 if coefficient else 1e-4)
    assert curves[0][0] == pytest.approx(curves[1][0], abs=1e-4)
    assert max(curves[0]) - min(curves[0]) > 0.3


@pytest.mark.parametrize("loss", [token_loss, full_token_loss])
def test_it_has_a_gradient_with_and_without_checkpoints(small: Small, loss: Callable[..., Any]) -> None:
    ids = torch.arange(20, 40)[None].repeat(2, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    gradients = []
    for checkpointing in (False, True):
        module = loaded(small("qwen3_moe")).train()
        if checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        assert loss(module, batch).balance is None
        losses = loss(module, batch, balance=True)
        losses.balance.backward()
        gradients.append(module.model.layers[0].mlp.gate.weight.grad)
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_held_out_losses_are_without_it(bench: Bench, small: Small, method: str) -> None:
    """At the start the loss of dpo is log 2, and that of kto one half; training adds the weight times about 2."""
    setup = bench(method, model=small("qwen3_moe"), rows=pairs(16), max_steps=1)
    setup.train()
    first = {"dpo": 0.6931472, "kto": 0.5}.get(method)
    if first:
        assert setup.curve("eval/loss")[0] == pytest.approx(first, abs=1e-5)
        assert setup.curve("train/loss")[0] == pytest.approx(first + 0.001 * setup.curve("train/aux_loss")[0], abs=1e-5)
    else:
        weightless = bench(method, model=small("qwen3_moe", router_aux_loss_coef=0.0), rows=pairs(16), max_steps=1)
        weightless.train()
        assert setup.curve("eval/loss")[0] == pytest.approx(weightless.curve("eval/loss")[0], abs=1e-6)
        assert setup.curve("train/loss")[0] - weightless.curve("train/loss")[0] == pytest.approx(0.002, abs=2e-4)


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_the_switch_is_off_outside_the_steps(bench: Bench, small: Small, method: str) -> None:
    """A base that has it on, too: it is off while the model generates, and in what is kept of it."""
    rows = {} if method == "sft" else {"rows": pairs(16)}
    base = small("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.003)
    assert AutoConfig.from_pretrained(base).output_router_logits
    setup = bench(method, model=base, max_steps=2, eval_steps=1, **{"adapter.kind": "none", **rows})
    model = trainable.prepare(setup.job, setup.data, setup.base)
    seen = []
    module = model.module
    generate = module.generate
    module.generate = lambda **options: seen.append(module.config.output_router_logits) or generate(**options)
    trained = setup.job.registry.trainers[method].train(setup.job, setup.data, model)
    assert seen
    assert not any(seen)
    kept = json.loads((trained.model / "config.json").read_text())
    assert kept["output_router_logits"] is False
    assert kept["router_aux_loss_coef"] == 0.003


@pytest.mark.parametrize("kind", ["granitemoe", "llama4", "deepseek_v3"])
def test_where_it_cannot_be_computed_nothing_is_added(bench: Bench, small: Small, kind: str) -> None:
    """TRL's own output layer knows no number of experts of Granite's; transformers computes none of Llama 4's."""
    method = "dpo" if kind != "llama4" else "sft"
    rows = {"rows": pairs(16)} if method == "dpo" else {}
    setup = bench(method, model=small(kind), max_steps=1, **rows)
    setup.train()
    assert setup.curve("train/loss")
    assert not setup.curve("train/aux_loss")


# ---- TRL's own output layer


@pytest.mark.parametrize(
    ("kind", "words"), [("recurrent_gemma", "changes log-probabilities by up to"), ("llama4", "does not fit it")]
)
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_output_layer_that_says_something_else_is_refused(
    bench: Bench, small: Small, method: str, kind: str, words: str
) -> None:
    setup = bench(method, model=small(kind), rows=pairs(16), max_steps=1, **{"adapter.kind": "none"})
    with pytest.raises(ConfigError, match=words):
        setup.train()
    assert not setup.curve("train/loss")


def test_an_output_layer_at_another_temperature_is_no_difference(bench: Bench, small: Small) -> None:
    from trl.trainer.utils import add_fused_lm_head

    setup = bench("dpo", model=small("llama"), rows=pairs(16))
    module = loaded(small("llama")).eval()
    add_fused_lm_head(module, temperature=0.7)
    row = list(range(20, 40))
    fused_head.check(setup.job, module, row, temperature=0.7, rough=False)
    with pytest.raises(ConfigError):
        fused_head.check(setup.job, module, row, temperature=1.0, rough=False)
