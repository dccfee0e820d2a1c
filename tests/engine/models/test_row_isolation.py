"""Rows in one forward pass: those that a model mixes are found, on any architecture, and no others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from mlflow_ft.engine import batches
from mlflow_ft.engine.models import row_isolation
from mlflow_ft.engine.training import sft
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Encoded

Small = Callable[..., Path]
DRAW = random.Random(0)
ROWS = [[DRAW.randrange(3, 500) for _ in range(DRAW.randrange(9, 40))] for _ in range(12)]
MIXING = {  # what carries a row over, by kind of model
    "qwen3_5": ("model.layers.0.linear_attn", "Qwen3_5GatedDeltaNet"),
    "qwen3_next": ("model.layers.0.linear_attn", "Qwen3NextGatedDeltaNet"),
    "mamba": ("backbone.layers.0.mixer", "MambaMixer"),
    "rwkv": ("rwkv.blocks.0.attention", "RwkvSelfAttention"),
    "lfm2": ("model.layers.0.conv", "Lfm2ShortConv"),
    "jamba": ("model.layers.0.mamba", "JambaMambaMixer"),
    "recurrent_gemma": ("model.layers.0.temporal_block", "RecurrentGemmaRecurrentBlock"),
    "minimax": ("model.layers.0.self_attn", "MiniMaxLightningAttention"),
    "bloom": ("transformer.h.0.self_attention", "BloomAttention"),
    "gpt_oss": ("model.layers.0.self_attn", "GptOssAttention"),
}
APART = ("llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmoe", "llama4", "gemma3_text", "gpt2", "deepseek_v3")


def loaded(folder: Path, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **more}).eval()


def as_features(rows: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"input_ids": list(row), "labels": list(row), "seq_lengths": [len(row)]} for row in rows]


def packed(rows: Sequence[Sequence[int]]) -> Any:
    return sft.ForPacked()(as_features(rows))


def padded(rows: Sequence[Sequence[int]]) -> Any:
    return batches.padded([Encoded(input_ids=tuple(row), labels=tuple(row)) for row in rows], pad_token_id=0)


@pytest.mark.parametrize("kind", MIXING)
def test_packed_rows_that_see_each_other_are_found_with_the_layers(small: Small, kind: str) -> None:
    with row_isolation._as_it_trains(model := loaded(small(kind))):
        seen = row_isolation.see_each_other(model, ROWS, packed)
    name, layer = MIXING[kind]
    assert seen is not None
    assert seen.difference > 1e-5
    assert name in seen.layers
    assert f"({layer})" in seen.layers
    assert ".mlp" not in seen.layers
    assert "lm_head" not in seen.layers


@pytest.mark.parametrize("kind", APART)
def test_rows_that_leave_each_other_alone_are_let_pass(small: Small, kind: str) -> None:
    with row_isolation._as_it_trains(model := loaded(small(kind))):
        assert row_isolation.see_each_other(model, ROWS, packed, batch=packed(ROWS)) is None


@pytest.mark.parametrize("kind", [*MIXING, *APART])
def test_padding_on_the_right_changes_no_row(small: Small, kind: str) -> None:
    with row_isolation._as_it_trains(model := loaded(small(kind))):
        assert row_isolation.see_each_other(model, ROWS, padded) is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_an_adapter_and_another_attention(small: Small, attention: str) -> None:
    for kind, mixes in (("llama", False), ("qwen3_5", True)):
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_dropout=0.2)
        model = get_peft_model(loaded(small(kind), attn_implementation=attention), config)
        with row_isolation._as_it_trains(model):
            seen = row_isolation.see_each_other(model, ROWS, packed, batch=packed(ROWS))
        assert (seen is not None) is mixes
        assert seen is None or seen.layers.startswith("model.layers.0.linear_attn")  # not base_model.model.


@pytest.mark.parametrize(
    ("kind", "mixes"), [("llama", False), ("qwen3_moe", False), ("qwen3_5", True), ("bloom", True)]
)
def test_rounding_hides_nothing_and_is_no_difference(small: Small, kind: str, *, mixes: bool) -> None:
    with row_isolation._as_it_trains(model := loaded(small(kind), dtype=torch.bfloat16)):
        seen = row_isolation.see_each_other(model, ROWS, packed, batch=packed(ROWS))
    assert (seen is not None) is mixes


def test_what_only_a_whole_batch_shows(small: Small) -> None:
    """A layer that mixes beyond 200 tokens alone, where no pair of short rows reaches."""
    model = loaded(small("llama"))

    def leak(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :200], output[:, 200:] + output[:, 200:].mean(dim=1, keepdim=True)], dim=1)

    model.model.layers[0].mlp.register_forward_hook(leak)
    assert row_isolation.see_each_other(model, ROWS, packed) is None
    seen = row_isolation.see_each_other(model, ROWS, packed, batch=packed(ROWS))
    assert seen is not None
    assert seen.layers == ""


def test_a_row_in_a_padded_batch_that_sees_the_others(small: Small) -> None:
    model = loaded(small("llama"))
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: output + output.mean(dim=0, keepdim=True))
    seen = row_isolation.see_each_other(model, ROWS, padded)
    assert seen is not None
    assert seen.difference > 1e-3


def test_a_model_that_scores(small: Small) -> None:
    model: Any = AutoModelForSequenceClassification.from_pretrained(small("qwen3_moe"), num_labels=1).eval()
    model.config.pad_token_id = 0
    assert row_isolation.see_each_other(model, ROWS, padded) is None
    model.score.register_forward_hook(lambda _, __, output: output + output.mean(dim=0, keepdim=True))
    assert row_isolation.see_each_other(model, ROWS, padded) is not None


class Dropping(nn.Module):
    """Drops out by a function, as attention does."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(hidden, 0.5, self.training)


def test_dropout_is_no_difference_and_every_mode_is_as_before(small: Small) -> None:
    model = loaded(small("llama"))
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp, nn.Dropout(0.5), Dropping())
    model.train()
    model.model.norm.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    with row_isolation._as_it_trains(model):
        assert row_isolation.see_each_other(model, ROWS, packed) is None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_are_short_rows_of_unlike_length() -> None:
    pairs = row_isolation.pairs([[1], [1] * 200, [1] * 3, [1] * 9, [1] * 20, [1] * 30])
    assert [(len(first), len(second)) for first, second in pairs] == [(9, 65), (9, 30)]
    assert row_isolation.pairs([[1], []]) == []
    assert [(len(first), len(second)) for first, second in row_isolation.pairs([[1, 2], [1, 2, 3]])] == [(2, 3), (2, 3)]


def test_boundaries_are_those_that_trl_gives() -> None:
    ours = sft.ForPacked(boundaries=True)(as_features(ROWS[:3]))
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(as_features(ROWS[:3]))
    for name in sft.BOUNDARIES:
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])), name
    assert set(sft.ForPacked()(as_features(ROWS[:3]))) == {"input_ids", "labels", "position_ids"}


def test_boundaries_are_kept_only_where_they_help() -> None:
    collator, seen = sft.ForPacked(), row_isolation.Seen(difference=1.0, layers="")
    assert sft._with_boundaries(collator, None, lambda *_: None, rough=False) is None
    assert collator.boundaries
    assert sft._with_boundaries(sft.ForPacked(), None, lambda *_: seen, rough=False) == ""

    def fails(*_: Any) -> None:
        raise ValueError("install a kernel")

    assert sft._with_boundaries(sft.ForPacked(), None, fails, rough=False) == "; install a kernel"
    assert sft._with_boundaries(object(), None, lambda *_: None, rough=False) == ""


def test_another_loss_is_refused(bench: Callable[..., Any]) -> None:
    for option, words in (
        ("loss_type=dft", "the mean loss over the learned tokens"),
        ("label_smoothing_factor=0.1", "the loss on tokens has none"),
    ):
        with pytest.raises(ConfigError, match=words):
            bench("lora", **{"objective.options": option}).train()
