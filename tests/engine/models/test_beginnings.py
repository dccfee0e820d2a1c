"""Rows that begin with the same tokens: the beginning is computed once, with the same losses and gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from mlflow_ft.engine import batches
from mlflow_ft.engine.loss import full_token_loss, suited
from mlflow_ft.engine.models import row_isolation
from mlflow_ft.engine.models.beginnings import SHORTEST, plan
from mlflow_ft.engine.models.unpadding import Unpadding
from mlflow_ft.rows import Encoded
from tests.engine.models.test_unpadding import KINDS, loaded

Small = Callable[..., Path]


def batch_of(*rows: Sequence[int]) -> dict[str, torch.Tensor]:
    return batches.padded([Encoded(input_ids=tuple(ids), labels=tuple(ids)) for ids in rows], pad_token_id=0)


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 500) for _ in range(count)]


SYSTEM, FIRST, SECOND = tokens(20, 1), tokens(14, 2), tokens(25, 3)
PAIRS = batch_of(
    SYSTEM + FIRST + tokens(9, 4),
    SYSTEM + SECOND + tokens(3, 5),
    SYSTEM + FIRST + tokens(1, 6),  # all but the last token is that of row 0
    SYSTEM + SECOND + tokens(12, 7),
    tokens(5, 8),
)
"""Two preferences with one system prompt, and a row that has nothing in common with them."""
COMPUTED = (20 + 14 + 9) + (25 + 3) + 1 + 12 + 5


def losses_and_gradients(model: Any, batch: Any = PAIRS) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    nll = suited(model, batch)(model, batch).nll
    nll.square().mean().backward()  # every token has a gradient of its own
    return nll.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def compare(model: Any) -> Unpadding:
    """Padded, and with every beginning once: token by token, and the gradients of one step."""
    padded = losses_and_gradients(model)
    unpadding = Unpadding(model)
    unpadding.on()
    shared = losses_and_gradients(model)
    unpadding.off()
    assert torch.allclose(shared[0], padded[0], rtol=1e-5, atol=1e-5)
    assert float((shared[1] - padded[1]).norm() / padded[1].norm()) < 1e-5
    return unpadding


# --- the plan


@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 1), min_size=1, max_size=30)), min_size=2))
def test_every_row_can_be_put_together_from_what_is_computed(rows: list[tuple[int, list[int]]]) -> None:
    beginning = tokens(40, 9)
    batch = batch_of(*(beginning[:shared] + rest for shared, rest in rows))
    ids, inside = batch["input_ids"], batch["attention_mask"].bool()
    planned = plan(ids, inside)
    if planned is None:
        return
    packed = ids[planned.computed]
    assert [packed[places].tolist() for places in planned.places] == [
        row[on].tolist() for row, on in zip(ids, inside, strict=True)
    ]
    assert len(packed) < int(inside.sum())
    assert all(computed.any() for computed in planned.computed), "each row has a token of its own"


def test_a_short_beginning_is_computed_again() -> None:
    for count, shares in ((SHORTEST - 1, False), (SHORTEST, True)):
        batch = batch_of([*SYSTEM[:count], 5, 6], [*SYSTEM[:count], 7])
        assert (plan(batch["input_ids"], batch["attention_mask"].bool()) is not None) == shares


# --- the model


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_padded_rows(small: Small, kind: str) -> None:
    assert compare(loaded(small(kind))).tokens == COMPUTED


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_an_adapter(small: Small, *, checkpointing: bool) -> None:
    model = loaded(small("mistral"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    assert compare(get_peft_model(model, config)).tokens == COMPUTED


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "olmoe"])
def test_the_balance_of_experts_counts_the_beginning_of_every_row(small: Small, kind: str) -> None:
    model = loaded(small(kind))
    padded = full_token_loss(model, PAIRS, balance=True).balance
    unpadding = Unpadding(model)
    unpadding.on()
    shared = full_token_loss(model, PAIRS, balance=True).balance
    assert unpadding.tokens == COMPUTED
    assert padded is not None
    assert shared is not None
    assert shared.item() == pytest.approx(padded.item(), rel=1e-5)


def test_rows_of_one_length_share_too(small: Small) -> None:
    model, batch = loaded(small("llama")), batch_of([*SYSTEM, 5, 6], [*SYSTEM, 7, 8])
    unpadding = Unpadding(model)
    padded = losses_and_gradients(model, batch)[0]
    unpadding.on()
    assert torch.allclose(losses_and_gradients(model, batch)[0], padded, atol=1e-5)
    assert unpadding.tokens == 24


def test_where_attention_or_inputs_do_not_allow_it_nothing_is_shared(small: Small) -> None:
    learned = get_peft_model(loaded(small("llama")), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for model in (loaded(small("llama"), attn_implementation="eager"), learned):
        assert compare(model).tokens > COMPUTED


def test_a_model_that_sees_what_is_not_its_row_is_found(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof before the first step: a beginning that is not that of the row changes its losses."""
    from mlflow_ft.engine.models import beginnings

    model = loaded(small("llama"))
    rows = [PAIRS["input_ids"][row, : 30 + row].tolist() for row in range(2)]
    collate = row_isolation.padding(0)
    alike = collate(row_isolation.of_one_beginning(model, rows))
    right = beginnings.plan

    def wrong(ids: torch.Tensor, inside: torch.Tensor) -> Any:
        planned = right(ids, inside)
        return planned and planned._replace(places=[places.flip(0) for places in planned.places])

    unpadding = Unpadding(model)
    unpadding.on()
    with row_isolation._as_it_trains(model):
        assert row_isolation.see_each_other(model, rows, collate, batch=alike, unpadded=True) is None
        monkeypatch.setattr(beginnings, "plan", wrong)
        assert row_isolation.see_each_other(model, rows, collate, batch=alike, unpadded=True) is not None
