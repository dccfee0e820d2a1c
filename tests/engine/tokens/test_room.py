"""Numbers of tokens and positions: those of the model itself, read without its weights."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, MptConfig, MptForCausalLM, RobertaConfig, RobertaForCausalLM

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.models import skeleton
from mlflow_ft.engine.tokens import room
from mlflow_ft.errors import ModelError
from mlflow_ft.testing import make_tiny_tokenizer
from tests.engine.foreign import base_model
from tests.reports.small_models import TOKENS, with_settings

Small = Callable[..., Path]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3", "qwen3_5_pictures", "bloom", "rwkv"])
def test_tokens_are_the_rows_of_the_embeddings(small: Small, kind: str) -> None:
    assert room.tokens(small(kind)) == len(skeleton.bare_model(small(kind)).get_input_embeddings().weight) == 512


def test_tokens_of_a_model_that_transformers_does_not_know(small: Small, tmp_path: Path) -> None:
    strange = with_settings(small("llama"), tmp_path / "strange", model_type="strange")
    assert room.tokens(strange) == 512
    (strange / "config.json").write_text(json.dumps({"model_type": "strange"}))
    assert room.tokens(strange) is None
    assert room.made_for(strange) is None


def reads(model: Any, length: int) -> bool:
    ids = torch.zeros(1, length, dtype=torch.long)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("gpt2", "n_positions"),
        ("opt", "max_position_embeddings"),
        ("llama", "max_position_embeddings"),
        ("bloom", ""),
        ("mamba", ""),
    ],
)
def test_positions_are_those_beyond_which_a_model_cannot_read(small: Small, kind: str, size: str) -> None:
    folder = small(kind, **({size: 48} if size else {}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    limit = room.positions(model)
    assert limit == room.positions(skeleton.bare_model(folder))
    assert reads(model, 48)
    assert reads(model, 49) is (limit is None)
    assert limit in (None, 48)


@torch.no_grad()
def test_positions_of_models_that_count_otherwise() -> None:
    size: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    roberta = RobertaForCausalLM(
        RobertaConfig(**size, intermediate_size=64, max_position_embeddings=48, is_decoder=True)
    ).eval()
    mpt = MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=1, n_heads=4, max_seq_len=48)).eval()
    for model, limit in ((roberta, 46), (mpt, 48)):
        assert room.positions(model) == limit
        assert reads(model, limit)
        assert not reads(model, limit + 1)


def test_what_is_left_after_a_prompt(small: Small) -> None:
    model = base_model(small("gpt2", n_positions=48))
    assert room.left(model, 40) == 8
    assert room.left(model, 60) == 0
    prompt = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    assert room.left(prompt, 40) == 3
    assert room.left(base_model(small("llama")), 10_000) is None


def test_tokens_beyond_the_rows() -> None:
    tokenizer: Any = make_tiny_tokenizer()
    assert room.size(tokenizer) == TOKENS
    assert room.beyond(tokenizer, None) == room.beyond(tokenizer, TOKENS) == {}
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    assert room.beyond(tokenizer, TOKENS + 2) == {TOKENS + 2: "<c>", TOKENS + 3: "<d>"}
    assert room.listed(room.beyond(tokenizer, TOKENS)).endswith(f"'<c>' (id {TOKENS + 2}) and 1 more")


def test_ids_without_an_embedding_are_refused() -> None:
    tokenizer: Any = make_tiny_tokenizer()
    tokenizer.add_tokens(["<a>", "[b]"])
    tokenizer.rows = None
    room.refuse_ids(tokenizer, [TOKENS + 1], place="a row")
    tokenizer.rows = TOKENS
    room.refuse_ids(tokenizer, [0, TOKENS - 1], place="a row")
    with pytest.raises(ModelError, match=rf"a row contains '<a>' \(id {TOKENS}\), '\[b\]'") as refused:
        room.refuse_ids(tokenizer, [TOKENS + 1, 3, TOKENS], place="a row")
    assert room.add_tokens(["<a>", "[b]"]) in str(refused.value.hint)


@pytest.mark.parametrize(
    "tokens", [["<a>", "</a>"], ["[PAD]"], ["[A]", "[B]"], ["null"], ["it's"], ["#"], ["{a}"]], ids=str
)
def test_the_hint_to_add_tokens_is_read_as_those_tokens(tokens: list[str]) -> None:
    name, value = shlex.split(room.add_tokens(tokens))
    config = asked(["lora", "--model=x", "--data=y", f"{name}={value}"], plugins.load({"MLFLOW_FT_PLUGINS": ""}))
    assert config.model.add_tokens == tokens
