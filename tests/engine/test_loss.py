"""The loss on the learned tokens is torch's cross entropy over the model's own logits, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from mlflow_ft.engine import batches, loss
from mlflow_ft.rows import Encoded

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
ROWS = [
    Encoded(input_ids=(5, 6, 7, 8, 9, 10, 11), labels=(-100, -100, 7, 8, -100, 10, 11)),
    Encoded(input_ids=(12, 13, 14), labels=(12, -100, 14)),
    Encoded(input_ids=(15, 16, 17, 18), labels=(-100,) * 4),
    Encoded(input_ids=(19, 20, 21, 22, 23), labels=(-100, 20, 21, 22, 23)),
]


def make(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def batch() -> dict[str, torch.Tensor]:
    return batches.padded(ROWS, pad_token_id=0)


def by_hand(model: Any, inputs: dict[str, torch.Tensor], *, prefix: int = 0) -> torch.Tensor:
    """Row by row, without padding."""
    losses = []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, prefix:]
        for place, label in enumerate(row.labels):
            if place and label != -100:
                losses.append(functional.cross_entropy(logits[place - 1].float(), torch.tensor(label)))
    return torch.stack(losses)


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_both_losses_are_cross_entropy(monkeypatch: pytest.MonkeyPatch, *, tied: bool, lora: bool, chunk: int) -> None:
    monkeypatch.setattr(loss, "chunk", lambda head, on_gpu: chunk)
    model = make(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    if lora:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type=TaskType.CAUSAL_LM)
        model = get_peft_model(model, config)
    inputs = batch()
    wanted = by_hand(model, inputs)
    wanted_gradients = gradients(model, wanted.mean())
    assert len(wanted_gradients) > 5
    for measure in (loss.token_loss, loss.full_token_loss):
        measured = measure(model, inputs)
        torch.testing.assert_close(measured.nll, wanted.detach(), check_dtype=True, rtol=1e-4, atol=1e-5)
        assert measured.row.tolist() == [0] * 4 + [1] + [3] * 4
        found_gradients = gradients(model, measured.nll.mean())
        assert found_gradients.keys() == wanted_gradients.keys()
        for name, gradient in found_gradients.items():
            torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_correct_says_whether_the_likeliest_token_was_the_right_one() -> None:
    model = make(LlamaConfig(**SIZES))
    likeliest = model(input_ids=torch.tensor([ROWS[0].input_ids])).logits[0].argmax(-1).tolist()
    ids = ROWS[0].input_ids
    labels = (-100, likeliest[0], (likeliest[1] + 1) % 60, likeliest[2])
    inputs = {
        "input_ids": torch.tensor([ids[:4]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "labels": torch.tensor([labels]),
    }
    for measure in (loss.token_loss, loss.full_token_loss):
        assert measure(model, inputs).correct.tolist() == [True, False, True]


def test_soft_prompts_in_front_move_nothing() -> None:
    model = get_peft_model(
        make(LlamaConfig(**SIZES)), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    ).eval()
    inputs = {name: value[:1] for name, value in batch().items()}
    wanted = by_hand(model, inputs, prefix=3)[:4]
    for measure in (loss.token_loss, loss.full_token_loss):
        torch.testing.assert_close(measure(model, inputs).nll, wanted, rtol=1e-4, atol=1e-5)


def test_the_head_is_whole_again_after_an_error() -> None:
    model = make(LlamaConfig(**SIZES))
    with pytest.raises(TypeError):
        loss.token_loss(model, {"labels": torch.zeros(1, 2, dtype=torch.long), "input_ids": 3})  # type: ignore[dict-item]
    assert model(input_ids=torch.tensor([[5, 6]])).logits.shape[-1] == 60


@pytest.mark.parametrize(
    ("config", "agrees"),
    [
        pytest.param(LlamaConfig(**SIZES), True, id="llama"),
        pytest.param(LlamaConfig(**SIZES, tie_word_embeddings=True), True, id="llama tied"),
        pytest.param(Gemma2Config(**SIZES, final_logit_softcapping=2.0), False, id="gemma-2 soft-capping"),
        pytest.param(Gemma2Config(**SIZES, final_logit_softcapping=None), True, id="gemma-2 without"),
        pytest.param(GraniteConfig(**SIZES, logits_scaling=8.0), True, id="granite, a linear scaling"),
        pytest.param(CohereConfig(**SIZES, logit_scale=0.0625), True, id="cohere, a linear scaling"),
    ],
)
def test_a_model_that_changes_its_logits_behind_the_head_is_found_out(config: Any, *, agrees: bool) -> None:
    model = make(config).train()
    inputs = batch()
    assert loss.agrees_with_logits(model, inputs) is agrees
    assert model.training
    model.eval()
    wanted = by_hand(model, inputs)
    torch.testing.assert_close(loss.full_token_loss(model, inputs).nll, wanted, rtol=1e-4, atol=1e-4)
    assert torch.allclose(loss.token_loss(model, inputs).nll, wanted, rtol=1e-3, atol=1e-3) is agrees


def test_a_model_that_changes_its_logits_is_found_out_by_rows_of_which_nothing_is_learned() -> None:
    nothing = [Encoded(input_ids=row.input_ids, labels=(-100,) * len(row.input_ids)) for row in ROWS]
    inputs = batches.padded(nothing, pad_token_id=0)
    scaling = make(CohereConfig(**SIZES, logit_scale=0.0625))
    scaling.lm_head.bias = torch.nn.Parameter(torch.arange(60) / 10)  # no linear scaling now
    assert not loss.agrees_with_logits(scaling, inputs)
    assert loss.agrees_with_logits(make(LlamaConfig(**SIZES)), inputs)


@pytest.mark.parametrize("joined", [False, True], ids=["padded", "end to end"])
def test_the_check_has_few_logits_in_memory(*, joined: bool) -> None:
    model = make(LlamaConfig(**SIZES))
    ids = torch.arange(400)[None] % 57 + 3
    inputs = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(400)[None] % 200}
    if not joined:
        short = torch.arange(400)[None] < 3
        inputs = {"input_ids": ids.repeat(2, 1), "labels": ids.repeat(2, 1)}
        inputs["attention_mask"] = torch.cat([short, ~short]).long()
    shapes: list[Any] = []
    model.lm_head.register_forward_hook(lambda layer, given, output: shapes.append(output.shape))
    assert loss.agrees_with_logits(model, inputs)
    assert shapes == [(1, loss.CHECKED, 32), (1, loss.CHECKED, 60)]  # bypassed, and the model's own


def test_tokens_that_the_head_does_not_have_are_not_compared() -> None:
    model = make(LlamaConfig(**SIZES))
    model.lm_head = torch.nn.Linear(32, 20, bias=False)
    inputs = batch()
    assert int(inputs["input_ids"].max()) >= 20
    assert loss.agrees_with_logits(model, inputs)
