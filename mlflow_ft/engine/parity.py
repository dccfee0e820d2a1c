"""How near a saved model is to the one that was trained: logits on held-out tokens, compared token by token.

The trained model leaves its logits behind while it is still in memory; every form that is packaged (the adapter on
its base, the merged model) is loaded from its files and compared with them. KL is D(trained || packaged), in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from mlflow_ft.engine.loss import causal_model
from mlflow_ft.job import Data, Encoded

ROWS = 8
FIRST = 1000
"""Held-out rows that are looked at for them."""
POSITIONS = 96
"""Learned tokens that are compared, at most: 96 x a vocabulary of 128,000 x 4 bytes are 47 MiB."""


def keep_reference(model: Any, data: Data, file: Path) -> None:
    """Write the logits of the model as it is in memory, on learned tokens of the first held-out rows."""
    rows = [row for row in itertools.islice(data.eval.encoded, FIRST) if len(row.input_ids) > 1][:ROWS]
    kept: dict[str, Tensor] = {}
    left = POSITIONS
    for index, row in enumerate(rows):
        positions = compared(row)[:left]
        if not positions:
            break
        left -= len(positions)
        kept[f"{index}.input_ids"] = torch.tensor(row.input_ids)
        kept[f"{index}.positions"] = torch.tensor(positions)
        kept[f"{index}.logits"] = logits_at(model, kept[f"{index}.input_ids"], kept[f"{index}.positions"])
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file)


def compared(row: Encoded) -> list[int]:
    """The positions before the tokens that are learned; every position of a prompt, of which nothing is."""
    learned = [place - 1 for place, label in enumerate(row.labels) if label != -100 and place]
    return learned or list(range(len(row.input_ids)))


@torch.no_grad()
def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits, float32 on the CPU, of shape (positions, vocabulary), of one row of token ids.

    A model that scores has one for the whole row: the answer's score beside 0, that of a middling answer, of shape
    (1, 2); their softmax is the chance that the answer is preferred (Bradley and Terry).
    """
    causal = causal_model(model)
    output = model(
        input_ids=input_ids[None].to(causal.device),
        attention_mask=torch.ones_like(input_ids[None]).to(causal.device),
        use_cache=False,
    ).logits
    if output.dim() == 2:
        return functional.pad(output, (0, 1)).float().cpu().contiguous()
    output = output[0]
    at: Tensor = output[-len(input_ids) :][positions.to(output.device)].float().cpu().contiguous()
    return at


def compare(model: Any, reference: Path) -> Mapping[str, float]:
    """Compare a model with the logits that the trained one left.

    Returns:
        `kl_mean`, `kl_max` (nats per token), `top1_agreement` (share of tokens), `tokens` (how many were compared).
    """
    kept = load_file(reference)
    divergences, agreements = [], []
    for index in range(len(kept) // 3):
        trained = kept[f"{index}.logits"]
        found = logits_at(model, kept[f"{index}.input_ids"], kept[f"{index}.positions"])
        width = min(trained.shape[1], found.shape[1])
        divergences.append(kl(trained[:, :width], found[:, :width]))
        agreements.append(trained.argmax(dim=-1) == found.argmax(dim=-1))
    divergence, agreement = torch.cat(divergences), torch.cat(agreements)
    return {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_agreement": agreement.float().mean().item(),
        "tokens": float(len(divergence)),
    }


def kl(expected: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(expected || found) of each row of logits, in nats; shape (rows,)."""
    log_expected = functional.log_softmax(expected.double(), dim=-1)
    log_found = functional.log_softmax(found.double(), dim=-1)
    return (log_expected.exp() * (log_expected - log_found)).sum(dim=-1).clamp(min=0)
