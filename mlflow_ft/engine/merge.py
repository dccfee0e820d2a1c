"""Fold an adapter into the weights it was trained on, and read them back in their plain form.

An adapter trained on a quantised base corrects that base, errors of rounding included. So it is merged into the
*dequantised* base; merging in place rounds the update away, and merging into the original weights is another model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import load_base, saved_dtype, with_adapter
from mlflow_ft.job import Job, Trained


def merge(job: Job, trained: Trained, folder: Path) -> None:
    """Write the merged model of a trained adapter into `folder`, without the tokenizer."""
    assert trained.adapter is not None
    base: Any = load_base(job.config, trained.base, dtype=torch.float32)
    if job.config.model.quantize != "none":
        with quiet_transformers():
            base = base.dequantize(dtype=torch.float32)
        base.is_loaded_in_4bit = base.is_loaded_in_8bit = False  # PEFT goes by them
    # Merged in float32: rounding to the saved type comes once, at the end.
    merged = with_adapter(base, trained.adapter).merge_and_unload(safe_merge=True)
    _save(merged, saved_dtype(job.config, trained.base.path), folder)


def copy_model(job: Job, trained: Trained, folder: Path) -> None:
    """Write a fully tuned model into `folder`: as it was trained, where no other type was asked for.

    The type of the base model's files may be too rough for it: bfloat16 loses most of what a low rate has changed.
    """
    model = load_base(job.config, trained.base, path=trained.model, dtype=torch.float32)
    _save(model, saved_dtype(job.config, trained.model), folder)


def _save(model: Any, dtype: torch.dtype, folder: Path) -> None:
    model.config.use_cache = True
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet_transformers():
        model.to(dtype).save_pretrained(folder)
