"""Packed rows: no example sees another or is cut, and the model learns the same as from single rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlflow_ft.engine import batches
from mlflow_ft.engine.loss import full_token_loss, token_loss
from mlflow_ft.engine.training import sft
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Encoded
from mlflow_ft.stages import start

ROWS = [
    Encoded(input_ids=(5, 6, 7, 8), labels=(-100, 6, 7, 8)),
    Encoded(input_ids=(9, 10, 11), labels=(9, 10, -100)),
    Encoded(input_ids=(12, 13, 14, 15, 16), labels=(-100, -100, 14, 15, 16)),
]


def packed(rows: list[Encoded]) -> dict[str, Any]:
    return {
        "input_ids": [token for row in rows for token in row.input_ids],
        "labels": [label for row in rows for label in row.labels],
        "seq_lengths": [len(row.input_ids) for row in rows],
    }


def test_positions_begin_again_and_first_tokens_are_not_learned() -> None:
    batch = sft.ForPacked()([packed(ROWS[:2]), packed(ROWS[2:])])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 8, -100, 10, -100, -100, -100, 14, 15, 16]]
    assert set(batch) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("loss", [token_loss, full_token_loss])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_token_has_the_loss_it_has_alone(tiny_model: Any, loss: Callable[..., Any], attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention).eval()
    alone = loss(model, batches.padded(ROWS, pad_token_id=1))
    together = loss(model, sft.ForPacked()([packed(ROWS)]))
    assert together.nll.tolist() == pytest.approx(alone.nll.tolist(), abs=1e-5)
    crossing = packed(ROWS) | {"seq_lengths": [12]}
    wrong = loss(model, sft.ForPacked()([crossing])).nll
    assert not torch.allclose(wrong[-3:], together.nll[-3:], atol=1e-4), "it would show if examples saw each other"


def test_a_packed_training_learns_every_example_once_an_epoch(bench: Callable[..., Any]) -> None:
    settings = {"adapter.kind": "none", "max_steps": -1, "num_train_epochs": 2, "learning_rate": 5e-3}
    setup = bench(
        "full", **settings, **{"objective.packing": True, "data.max_length": 64, "per_device_train_batch_size": 1}
    )
    setup.train()
    tokens = sum(len(row.input_ids) for row in setup.data.train.encoded)
    assert setup.curve("train/tokens_seen")[-1] == 2 * tokens
    assert len(setup.curve("train/loss")) < 2 * len(setup.data.train.encoded) / 2
    assert setup.curve("eval/loss")[-1] < setup.curve("eval/loss")[0]


def test_a_learned_prompt_is_not_packed(bench: Callable[..., Any]) -> None:
    setup = bench("lora", **{"adapter.kind": "prompt", "objective.packing": True})
    with pytest.raises(ConfigError, match="only the first would follow the prompt"):
        start.check_names(setup.job.config, setup.job.registry)
