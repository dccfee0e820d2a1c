"""The exporter's work, in a separate module because it imports torch and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def export(source: Path, folder: Path) -> None:
    """Write the model in `source` in bfloat16, with its tokenizer, so that `folder` is complete on its own."""
    _load(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@contextmanager
def opened(folder: Path) -> Iterator[Half]:
    """Load the exported model again; it is compared with the trained model and freed when the block ends."""
    yield Half(_load(folder))


class Half:
    """The exported model as a `Form`: the two questions that the comparison asks."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits of shape (positions, vocabulary)."""
        at: Tensor = self.model(input_ids[None]).logits[0, positions].float()
        return at

    @torch.no_grad()
    def continued(self, input_ids: Tensor, length: int) -> list[int]:
        """Up to `length` tokens of greedy decoding, including the end token."""
        prompt = input_ids[None]
        mask = torch.ones_like(prompt)
        output = self.model.generate(prompt, attention_mask=mask, max_new_tokens=length, do_sample=False)
        return [int(token) for token in output[0, len(input_ids) :]]


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
