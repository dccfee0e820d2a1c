"""A model without weights, on torch's meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import own_quantization, routers


def build(
    base: Path,
    *,
    task: str = "generate",
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
    **options: Any,
) -> Any:
    """The architecture of a folder's config.json, in evaluation mode, as plain weights of `dtype`.

    `layers` is how many of the repeated layers it gets, if not all; `options` are those of transformers' `from_config`.
    """
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if own_quantization.of(base):
        own_quantization.forget(config)  # the dequantised weights go into a model that is not quantised
    routers.silence(config)
    if layers is not None:
        _shorten(config.get_text_config(), layers)
    kind: Any = AutoModelForCausalLM
    if task == "score":
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    with torch.device("meta"), quiet_transformers():
        return kind.from_config(config, dtype=dtype, **options).eval()


def _shorten(config: Any, layers: int) -> None:
    """Leave the first `layers` layers, also in lists with an entry for each."""
    depth = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
