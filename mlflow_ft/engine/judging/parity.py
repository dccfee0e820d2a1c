"""How near a form of a model is to the one that was trained: on held-out tokens, one by one, and in what it says.

The trained model leaves its logits behind while it is still in memory (`reference`); every form that is made of it
(the adapter on its base, the merged model, one in fewer bits, a GGUF file) is loaded from its files and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from mlflow_ft.engine.judging.reference import LENGTH, Loaded, filled, kl, prompt
from mlflow_ft.values import Form


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison found."""

    numbers: Mapping[str, float]
    tokens: Sequence[Mapping[str, Any]]
    """A mapping a token that was compared: `row`, `position`, `token` and `trained_top`, `found_top` (ids), `kl`."""
    answers: Sequence[Mapping[str, Any]]
    """A mapping a prompt: `row`, `trained`, `found` (token ids)."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of the reference, and what was found of it."""

    index: int
    input_ids: Tensor
    positions: Tensor
    trained: Tensor
    found: Tensor

    @property
    def kl(self) -> Tensor:
        return kl(self.trained, self.found)

    @property
    def following(self) -> Tensor:
        """Of every position whether a token follows it whose probability is told; none is of a row that is scored."""
        there = (self.positions + 1 < len(self.input_ids)) & (len(self.trained) == len(self.positions))
        if not there.any():
            return there
        wanted = self.input_ids[(self.positions + 1).clamp(max=len(self.input_ids) - 1)]
        return there & ~self.found.gather(1, wanted[:, None])[:, 0].isnan()

    @property
    def told(self) -> Tensor:
        """What was found, with a number for every token."""
        return filled(self.found)

    def losses(self, logits: Tensor) -> Tensor:
        """Negative log-likelihood of the tokens that follow, in nats."""
        if not self.following.any():
            return torch.zeros(0, dtype=torch.float64)
        wanted = self.input_ids[self.positions[self.following] + 1]
        return functional.cross_entropy(logits[self.following].double(), wanted, reduction="none")


def compare(model: Any, reference: Path) -> Mapping[str, float]:
    """Compare a model in memory with the logits that the trained one left; see `measure`."""
    return measure(Loaded(model), reference).numbers


def measure(form: Form, reference: Path, *, answers: bool = True) -> Parity:
    """Compare a form with what the trained model left in `reference`; with `answers` also in how it goes on.

    Returns:
        In `numbers`: `kl_mean`, `kl_max` (D(trained || form), nats per token), `top1_agreement` (share of tokens),
        `perplexity_change` (relative to the trained model's, on the same tokens), `greedy_agreement` (share of prompts
        behind which both say the same), `unstopped` (prompts behind which the form says the same and then more, where
        the trained model ends its turn), `kl_share` (of the way from the base model to the trained one: 0 is the
        trained model, 1 as far from it as the base), `tokens` (how many were compared); what is not known is left out.
    """
    kept = load_file(reference)
    rows = [_row(form, kept, index) for index in range(sum(name.endswith(".input_ids") for name in kept))]
    divergence = torch.cat([row.kl for row in rows])
    agreement = torch.cat([row.trained.argmax(dim=-1) == row.told.argmax(dim=-1) for row in rows])
    said = [answer for row in rows if answers and (answer := _answer(form, kept, row))]
    numbers = {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_agreement": agreement.float().mean().item(),
    }
    trained, found = (torch.cat([row.losses(getattr(row, name)) for row in rows]) for name in ("trained", "told"))
    if len(trained):
        numbers["perplexity_change"] = torch.expm1(found.mean() - trained.mean()).item()
    if said:
        numbers["greedy_agreement"] = sum(one["trained"] == one["found"] for one in said) / len(said)
        numbers["unstopped"] = float(sum(_goes_on(**one) for one in said))
    base = [kept[f"{row.index}.base_kl"] for row in rows if f"{row.index}.base_kl" in kept]
    if base and (far := torch.cat(base).mean().item()) > 0:
        numbers["kl_share"] = numbers["kl_mean"] / far
    numbers["tokens"] = float(len(divergence))
    return Parity(numbers=numbers, tokens=[token for row in rows for token in _tokens(row)], answers=said)


def _row(form: Form, kept: Mapping[str, Tensor], index: int) -> _Row:
    ids, positions, trained = (kept[f"{index}.{name}"] for name in ("input_ids", "positions", "logits"))
    found = form.logits(ids, positions)
    width = min(trained.shape[1], found.shape[1])  # the embeddings of one may be padded
    return _Row(
        index=index, input_ids=ids, positions=positions, trained=trained[:, :width], found=found[:, :width].float()
    )


def _answer(form: Form, kept: Mapping[str, Tensor], row: _Row) -> Mapping[str, Any] | None:
    if f"{row.index}.continued" not in kept:
        return None
    trained = kept[f"{row.index}.continued"].tolist()
    found = form.continued(prompt(row.input_ids, row.positions), LENGTH)
    return {"row": row.index, "trained": trained, "found": found}


def _goes_on(*, row: int, trained: list[int], found: list[int]) -> bool:
    return len(found) > len(trained) > 0 and found[: len(trained)] == trained


def _tokens(row: _Row) -> Sequence[Mapping[str, Any]]:
    tops = zip(row.trained.argmax(dim=-1).tolist(), row.told.argmax(dim=-1).tolist(), strict=True)
    return [
        {
            "row": row.index,
            "position": position,
            "token": int(row.input_ids[position]),
            "trained_top": trained,
            "found_top": found,
            "kl": divergence,
        }
        for position, (trained, found), divergence in zip(row.positions.tolist(), tops, row.kl.tolist(), strict=False)
    ]
