"""A small Llama that vLLM can run, adapters on it, and an environment in which a stand-in takes vLLM's place."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mlflow_ft.testing import make_tiny_tokenizer

STAND_IN = Path(__file__).parent / "stand_in"


def make_small(folder: Path, *, seed: int = 0) -> Path:
    """As the tiny model, with heads of 64 values: vLLM's kernels for a CPU have no smaller ones."""
    tokenizer: Any = make_tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def make_lora(small: Path) -> Callable[..., Path]:
    """An adapter on the small model, with random weights."""

    def make(folder: Path, *, seed: int = 1, **settings: Any) -> Path:
        torch.manual_seed(seed)
        chosen = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
        model = get_peft_model(LlamaForCausalLM.from_pretrained(small), LoraConfig(**chosen))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has our packages, and the stand-in as `vllm`."""
    folder = tmp_path_factory.mktemp("environment") / "vllm"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "paths.pth").write_text(f"{STAND_IN}\n{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"
