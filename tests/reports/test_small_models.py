"""transformers can read the small models of these tests, and they give finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.reports import small_models


@pytest.mark.parametrize("kind", [*small_models.KINDS, *small_models.PICTURES])
def test_a_small_model_is_read_again(small: Callable[..., Path], kind: str) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(small(kind), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        logits = model(input_ids=torch.arange(10, 20)[None]).logits
    assert logits.shape == (1, 10, 512)
    assert logits.isfinite().all()
