"""What `models/test_kernels.py` runs in processes of their own: torch's compiler changes what is imported after it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.models import compiled, lean


def gradients(model: Any, length: int) -> torch.Tensor:
    """The gradients of all trained weights, for one row of so many tokens."""
    model.zero_grad()
    ids = torch.arange(length)[None] % 400
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def compare(folder: str) -> None:
    """Compiled layers have the gradients of those as they are written, and are as they were afterwards."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.model.layers = base.model.layers[:1]  # each layer of a kind is compiled: the second tells nothing new
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    expected = {length: gradients(model, length) for length in (7, 30)}
    calls = torch._dynamo.utils.counters["frames"]
    calls.clear()
    with lean.passes(model, fused=False, recomputing=False, compiled=True):
        for length, wanted in expected.items():
            torch.testing.assert_close(gradients(model, length), wanted, rtol=1e-4, atol=1e-6)
        compilations = calls["ok"]
    assert compilations, "nothing was compiled"
    assert torch.equal(gradients(model, 7), expected[7])
    assert calls["ok"] == compilations, "afterwards nothing is compiled"


def check() -> None:
    """Ask whether torch can compile here."""
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    words = ["--training.compile=true", "--data=demo", "--model=smollm2-135m"]
    compiled.check(asked(words, loaded, method="lora"))


if __name__ == "__main__":
    compare(sys.argv[1]) if sys.argv[1:] else check()
