"""Padded batches whose rows are laid end to end inside the model: the same losses and gradients, with fewer tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mlflow_ft.engine import batches, row_kernel
from mlflow_ft.engine.loss import full_token_loss, suited
from mlflow_ft.engine.models import row_isolation
from mlflow_ft.engine.models.unpadding import Unpadding
from mlflow_ft.engine.row_kernel import Row
from mlflow_ft.rows import Encoded

Small = Callable[..., Path]
DRAW = random.Random(0)
LENGTHS = (9, 3, 30, 1)
ROWS = [
    Encoded(input_ids=tuple(ids), labels=tuple(ids))
    for ids in ([DRAW.randrange(3, 500) for _ in range(length)] for length in LENGTHS)
]
BATCH = batches.padded(ROWS, pad_token_id=0)
KINDS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "llama4",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "phi3",
)


def loaded(folder: Path, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **more}).eval()


def losses_and_gradients(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    nll = suited(model, BATCH)(model, BATCH).nll
    nll.mean().backward()
    return nll.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def compare(model: Any) -> Unpadding:
    """Padded, and without padding: token by token, and the gradients of one step."""
    padded = losses_and_gradients(model)
    unpadding = Unpadding(model)
    unpadding.on()
    joined = losses_and_gradients(model)
    unpadding.off()
    assert torch.allclose(joined[0], padded[0], rtol=1e-5, atol=1e-5)
    assert float((joined[1] - padded[1]).norm() / padded[1].norm()) < 1e-5
    assert torch.equal(losses_and_gradients(model)[0], padded[0]), "the model is as it was"
    return unpadding


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_padded_rows(small: Small, kind: str) -> None:
    unpadding = compare(loaded(small(kind)))
    assert unpadding.possible
    assert 0 < unpadding.tokens * 2 < unpadding.positions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_an_adapter(small: Small, attention: str, *, checkpointing: bool) -> None:
    """Checkpointed layers run again in the backward pass, after the model's own forward pass has ended."""
    model = loaded(small("mistral"), attn_implementation=attention)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    assert compare(get_peft_model(model, config)).tokens


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "olmoe"])
def test_the_balance_of_experts_is_that_of_padded_rows(small: Small, kind: str) -> None:
    model = loaded(small(kind))
    padded = full_token_loss(model, BATCH, balance=True).balance
    unpadding = Unpadding(model)
    unpadding.on()
    joined = full_token_loss(model, BATCH, balance=True).balance
    assert padded is not None
    assert joined is not None
    assert joined.item() == pytest.approx(padded.item(), rel=1e-5)
    assert unpadding.tokens


def test_a_model_that_scores(small: Small) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(small("llama"), num_labels=1).eval()
    model.config.pad_token_id = 0
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        padded = model(**inputs).logits
        Unpadding(model).on()
        assert torch.allclose(model(**inputs).logits, padded, atol=1e-5)


def test_logits_of_padding_cost_nothing_and_mean_nothing(small: Small) -> None:
    model = loaded(small("llama"))
    Unpadding(model).on()
    hidden = model.model(**{name: BATCH[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    assert hidden.shape[:2] == BATCH["input_ids"].shape
    assert not hidden[~BATCH["attention_mask"].bool()].any()


def test_other_batches_are_left_as_they_are(small: Small) -> None:
    """Answers are generated with padding on the left and a cache; a full batch has no padding."""
    model = loaded(small("llama")).eval()
    left = {name: BATCH[name].flip(1) for name in ("input_ids", "attention_mask")}
    full = {"input_ids": BATCH["input_ids"], "attention_mask": torch.ones_like(BATCH["attention_mask"])}
    greedy = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    before = model.generate(**left, **greedy)
    unpadding = Unpadding(model)
    unpadding.on()
    assert torch.equal(model.generate(**left, **greedy), before)
    model(**full)
    model(**left)
    model(**BATCH, output_hidden_states=True)
    assert unpadding.positions == 0


@pytest.mark.parametrize(("kind", "why"), [("gpt_oss", "attention"), ("qwen3_5", "state")])
def test_rows_that_would_affect_each_other_are_found(small: Small, kind: str, why: str) -> None:
    model = loaded(small(kind))
    unpadding = Unpadding(model)
    unpadding.on()
    with row_isolation._as_it_trains(model):
        rows = [row.input_ids for row in ROWS]
        seen = row_isolation.see_each_other(model, rows, row_isolation.padding(0), unpadded=True)
    assert seen is not None, why
    unpadding.off()
    with row_isolation._as_it_trains(model):
        assert row_isolation.see_each_other(model, rows, row_isolation.padding(0)) is None


def test_a_model_without_positions_cannot(small: Small) -> None:
    assert not Unpadding(loaded(small("bloom"))).possible


def test_only_the_parts_of_the_mask_that_are_needed_are_made(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row gets no mask where it sees all before it, and its own part of the mask under a sliding window."""
    model = loaded(small("mistral"))
    seen = []
    real = row_kernel.attention

    def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: list[Row], **more: Any) -> Any:
        seen.extend(None if row.mask is None else tuple(row.mask.shape) for row in rows)
        return real(query, key, value, rows, **more)

    monkeypatch.setattr(row_kernel, "attention", record)
    Unpadding(model).on()
    full_token_loss(model, BATCH)
    assert seen[: len(LENGTHS)] == [(1, 1, 9, 9), None, (1, 1, 30, 30), None]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_elsewhere_than_on_a_cpu_each_row_is_a_call(small: Small, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A GPU has other kernels: torch's own function computes one row at a time."""
    monkeypatch.setattr(row_kernel, "fits", lambda *_: False)
    assert compare(loaded(small(kind))).tokens
