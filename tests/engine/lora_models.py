"""A small model with LoRA, and its gradients; a part that computes layers another way must give the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mlflow_ft.engine.models.wrapping import Replacing

IDS = torch.randint(3, 500, (3, 24), generator=torch.Generator().manual_seed(0))


def adapted(folder: Path, *, quantised: bool = False, **settings: Any) -> Any:
    torch.manual_seed(0)
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    more = {"quantization_config": four} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).train()
    given = {"target_modules": "all-linear", "init_lora_weights": False, "r": 6, "lora_alpha": 7}
    return get_peft_model(model, LoraConfig(**given | settings))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def check_same(model: Any, part: Replacing, *, tolerance: float = 1e-5) -> None:
    expected = gradients(model)
    part.on()
    found = gradients(model)
    part.off()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= tolerance * float(gradient.norm()), name
    assert all(torch.equal(one, expected[name]) for name, one in gradients(model).items()), "the model is as it was"
