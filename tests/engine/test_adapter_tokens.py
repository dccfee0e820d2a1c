"""Tokens that an adapter's tokenizer has and that neither the adapter nor its base has embeddings for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mlflow_ft.engine import adapter_tokens
from mlflow_ft.engine.models import quiet_peft
from mlflow_ft.errors import ModelError
from mlflow_ft.job import BaseModel
from mlflow_ft.testing import make_tiny_tokenizer
from tests.engine.foreign import base_model, made

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
Small = Callable[..., Path]


def teach(folder: Path, *tokens: str, pad: str | None = None) -> Path:
    """Give a folder a tokenizer of 512 tokens, as many as the base has rows, and then these."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens([f"<spare {number}>" for number in range(512 - len(tokenizer))])
    tokenizer.add_tokens(list(tokens))
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return folder


def of(folder: Path) -> BaseModel:
    return BaseModel(name="base", path=folder, name_or_path=str(folder), revision="", origin="")


@pytest.fixture
def base(small: Small) -> BaseModel:
    return of(small("llama"))


@pytest.fixture
def adapter(small: Small, tmp_path: Path) -> Path:
    """A LoRA without embeddings, and without a tokenizer."""
    made(small("llama"), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_it_is_refused(adapter: Path, base: BaseModel) -> None:
    with pytest.raises(ModelError, match=r"'<a>' \(id 512\), '<b>' \(id 513\); its base has embeddings for 512"):
        adapter_tokens.check(teach(adapter, "<a>", "<b>"), base, pads=False)


def test_what_fits_is_not(adapter: Path, base: BaseModel) -> None:
    adapter_tokens.check(adapter, base, pads=True)  # it has no tokenizer
    adapter_tokens.check(teach(adapter), base, pads=True)


def test_spare_tokens_of_the_base_are_not_trained(adapter: Path, small: Small, tmp_path: Path) -> None:
    """As Qwen's: the tokenizer of the base itself has more tokens than the base has rows."""
    base = of(teach(Path(shutil.copytree(small("llama"), tmp_path / "base")), "<a>", "<b>"))
    adapter_tokens.check(teach(adapter, "<a>", "<b>"), base, pads=True)
    with pytest.raises(ModelError, match=r"tokens whose embeddings were not saved with it: '<c>' \(id 514\);"):
        adapter_tokens.check(teach(adapter, "<a>", "<b>", "<c>"), base, pads=True)


def test_a_pad_token_matters_to_who_pads(adapter: Path, base: BaseModel) -> None:
    teach(adapter, pad="<new pad>")
    adapter_tokens.check(adapter, base, pads=False)
    with pytest.raises(ModelError, match=r"pads with '<new pad>' \(id 512\)") as raised:
        adapter_tokens.check(adapter, base, pads=True)
    assert "--pad_token" in str(raised.value.hint)


def test_a_grown_base_is_recorded(adapter: Path, base: BaseModel) -> None:
    """An adapter of ours says for how many tokens its base was grown."""
    teach(adapter, "<a>", "<b>")
    (adapter / "base.json").write_text(json.dumps({"tokens": 514}))
    adapter_tokens.check(adapter, base, pads=True)
    (adapter / "base.json").write_text(json.dumps({"tokens": 513}))
    with pytest.raises(ModelError, match=r"'<b>' \(id 513\)"):
        adapter_tokens.check(adapter, base, pads=True)


@pytest.mark.parametrize("settings", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {}], ids=["modules", "layers"])
def test_embeddings_that_were_saved(small: Small, base: BaseModel, tmp_path: Path, settings: dict[str, Any]) -> None:
    """By `modules_to_save`, and as PEFT saves the embeddings of a base that was resized."""
    model = base_model(small("llama"))
    model.resize_token_embeddings(514, mean_resizing=False)
    torch.manual_seed(0)
    with quiet_peft():
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings))
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    adapter_tokens.check(teach(tmp_path / "adapter", "<a>", "<b>"), base, pads=True)
