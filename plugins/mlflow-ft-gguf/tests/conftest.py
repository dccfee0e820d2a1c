"""A tiny Llama with a tokenizer that llama.cpp knows, and GGUF files of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_ft_gguf.engine import exporting, llamacpp
from mlflow_ft_gguf.engine.llamacpp import LlamaCpp
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.engine import hub
from mlflow_ft.engine.judging import reference
from mlflow_ft.progress import Progress

QUESTIONS = ("Name a colour.", "What is 17 + 25?\n\n3 more?", "Write one sentence about the sea.")


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 2 layers, whose rows are multiples of 256, and SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("known") / "model"
    small = hub.find(ModelSection(name="smollm2-135m"), Progress(quiet=True), weights=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(small.path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # otherwise all tokens are equally probable and rounding decides
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def said(known: Path) -> Path:
    """The model's outputs as a reference."""
    file = known.parent / "reference.safetensors"
    model = LlamaForCausalLM.from_pretrained(known).eval()
    reference.keep_answers(model, AutoTokenizer.from_pretrained(known), QUESTIONS, file)
    return file


@pytest.fixture(scope="session")
def f16(known: Path) -> Path:
    folder = known.parent / "f16"
    exporting.export(known, folder, kind="f16")
    return folder


@pytest.fixture
def server(f16: Path) -> Iterator[LlamaCpp]:
    with llamacpp.opened(f16) as llama:
        yield llama
