"""Adapters from elsewhere: written by PEFT alone, then changed as by wrappers, crashes and other models."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlflow_ft.engine.adapters.files import CONFIG, WEIGHTS
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models.loading import quiet_peft

PREFIX = "base_model.model."
IDS = torch.arange(20)[None]
State = dict[str, Tensor]


def base_model(folder: Path, kind: str = "AutoModelForCausalLM") -> Any:
    """A model in float32, loaded by the class of that name."""
    with quiet_transformers():
        return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def says(model: Any) -> Tensor:
    """The logits after twenty tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def made(
    base: Path, folder: Path, *, config: Any = None, kind: str = "AutoModelForCausalLM", seed: int = 0, **settings: Any
) -> Tensor:
    """Write an adapter of random weights as PEFT saves it, and return the model's output with it.

    `config` is a PEFT config; without one, `settings` are those of a LoRA of all linear layers.
    """
    usual = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(base_model(base, kind), config or LoraConfig(**(usual | settings)))
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(0.05 * torch.randn_like(weight))
        wrapped.save_pretrained(folder)
    return says(wrapped)


def changed(folder: Path, out: Path, change: Callable[[State], Mapping[str, Tensor]]) -> Path:
    """A copy of an adapter with other tensors."""
    shutil.copytree(folder, out)
    state = {name: weight.clone().contiguous() for name, weight in change(load_file(folder / WEIGHTS)).items()}
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    return out


def renamed(folder: Path, out: Path, change: Callable[[str], str]) -> Path:
    """A copy of an adapter whose tensors have other names."""
    return changed(folder, out, lambda state: {change(name): weight for name, weight in state.items()})


def configured(folder: Path, out: Path, **values: Any) -> Path:
    """A copy of an adapter with other values in its config."""
    shutil.copytree(folder, out)
    settings = json.loads((folder / CONFIG).read_text()) | values
    (out / CONFIG).write_text(json.dumps(settings))
    return out
