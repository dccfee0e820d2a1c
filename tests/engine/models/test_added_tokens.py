"""Tokens of an adapter's tokenizer: refused if they have no embeddings, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from mlflow_ft.engine.models import added_tokens
from mlflow_ft.engine.models.loading import quiet_peft
from mlflow_ft.errors import ModelError
from mlflow_ft.values import BaseModel
from tests.engine.foreign import base_model, made
from tests.reports.small_models import TOKENS, with_tokenizer

Small = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
NEW = ["<think>", "</think>"]


def of(folder: Path) -> BaseModel:
    return BaseModel(name="base", name_or_path=str(folder), path=folder, revision="", origin="folder")


def with_tokens(adapter: Path, base: Path, tokens: list[str], *, pad: str = "") -> Path:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(tokens)
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(adapter)
    return adapter


def test_tokens_whose_embeddings_were_not_saved(small: Small, tmp_path: Path) -> None:
    base = small("llama", vocab_size=TOKENS)
    made(base, tmp_path / "adapter")
    added_tokens.check(tmp_path / "adapter", of(base), pads=True)  # it has no tokenizer itself
    with_tokens(tmp_path / "adapter", base, NEW)
    with pytest.raises(ModelError, match=rf"were not saved with it: '<think>' \(id {TOKENS}\), '</think>'"):
        added_tokens.check(tmp_path / "adapter", of(base), pads=False)


def test_tokens_whose_embeddings_are_there(small: Small, tmp_path: Path) -> None:
    spare = small("llama")
    made(spare, tmp_path / "spare")
    added_tokens.check(with_tokens(tmp_path / "spare", spare, NEW), of(spare), pads=True)
    base = small("llama", vocab_size=TOKENS)
    model = base_model(base)
    model.resize_token_embeddings(TOKENS + 2, mean_resizing=False)
    with quiet_peft():
        wrapped = get_peft_model(
            model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        )
        wrapped.save_pretrained(tmp_path / "saved")
    added_tokens.check(with_tokens(tmp_path / "saved", base, NEW), of(base), pads=True)


def test_tokens_that_the_base_has_no_embeddings_for_either(small: Small, tmp_path: Path) -> None:
    base = with_tokenizer(
        small("llama", vocab_size=TOKENS), tmp_path / "base", lambda tokenizer: tokenizer.add_tokens(NEW)
    )
    made(base, tmp_path / "adapter")
    added_tokens.check(with_tokens(tmp_path / "adapter", base, []), of(base), pads=True)


def test_a_pad_token_matters_where_rows_are_padded(small: Small, tmp_path: Path) -> None:
    base = small("llama", vocab_size=TOKENS)
    made(base, tmp_path / "adapter")
    with_tokens(tmp_path / "adapter", base, [], pad="[PAD]")
    added_tokens.check(tmp_path / "adapter", of(base), pads=False)
    with pytest.raises(ModelError, match=rf"pads with '\[PAD\]' \(id {TOKENS}\)") as refused:
        added_tokens.check(tmp_path / "adapter", of(base), pads=True)
    assert "--pad_token" in str(refused.value.hint)


def test_a_token_that_the_chat_template_writes_needs_an_embedding(small: Small, tmp_path: Path) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.add_tokens(["<|turn|>", "<|spare|>"], special_tokens=True)
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")

    base = with_tokenizer(small("llama", vocab_size=TOKENS), tmp_path / "base", change)
    made(base, tmp_path / "adapter")
    with pytest.raises(ModelError, match=rf"chat template writes '<\|turn\|>' \(id {TOKENS}\), for which neither"):
        added_tokens.check(tmp_path / "adapter", of(base), pads=False)
    own = AutoTokenizer.from_pretrained(small("llama", vocab_size=TOKENS))
    own.save_pretrained(tmp_path / "adapter")
    added_tokens.check(tmp_path / "adapter", of(base), pads=True)
