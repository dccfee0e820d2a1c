"""How near a form of a model is to the one that was trained: on held-out tokens, one by one, and in what it says.

The trained model's logits are saved while it is still in memory (`reference`); every form made from it (the adapter on
its base, the merged model, a quantised model, a GGUF file) is loaded from its files and compared with them.
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

from mlflow_ft.engine.judging.reference import LENGTH, Loaded, all_continued, filled, kl, prompt
from mlflow_ft.values import Form


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The result of a comparison."""

    numbers: Mapping[str, float]
    tokens: Sequence[Mapping[str, Any]]
    """A mapping for each compared token: `row`, `position`, `token` and `trained_top`, `found_top` (ids), `kl`."""
    answers: Sequence[Mapping[str, Any]]
    """A mapping for each prompt: `row`, `trained`, `found` (token ids)."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of the reference, with the logits of the compared form."""

    index: int
    input_ids: Tensor
    positions: Tensor
    trained: Tensor
    """The trained model's logits."""
    form: Tensor
    """The form's logits, NaN for tokens without one."""

    @property
    def kl(self) -> Tensor:
        return kl(self.trained, self.form)

    @property
    def following(self) -> Tensor:
        """For every position, whether the form gives a probability for the next token; False for scored rows."""
        exists = (self.positions + 1 < len(self.input_ids)) & (len(self.trained) == len(self.positions))
        if not exists.any():
            return exists
        wanted = self.input_ids[(self.positions + 1).clamp(max=len(self.input_ids) - 1)]
        return exists & ~self.form.gather(1, wanted[:, None])[:, 0].isnan()

    @property
    def filled(self) -> Tensor:
        """The form's logits, with a number for every token."""
        return filled(self.form)

    def losses(self, logits: Tensor) -> Tensor:
        """Negative log-likelihood of the tokens that follow, in nats."""
        if not self.following.any():
            return torch.zeros(0, dtype=torch.float64)
        wanted = self.input_ids[self.positions[self.following] + 1]
        return functional.cross_entropy(logits[self.following].double(), wanted, reduction="none")


def compare(model: Any, reference: Path) -> Mapping[str, float]:
    """Compare a model in memory with the trained model's saved logits; see `measure`."""
    return measure(Loaded(model), reference).numbers


def measure(form: Form, reference: Path, *, answers: bool = True) -> Parity:
    """Compare a form with the trained model's saved `reference`; with `answers` also its greedy continuations.

    Returns:
        In `numbers`: `kl_mean`, `kl_max` (D(trained || form), nats per token), `top1_agreement` (share of tokens),
        `perplexity_change` (relative to the trained model's, on the same tokens), `greedy_agreement` (share of prompts
        with the same continuation), `unstopped` (prompts for which the form gives the same answer but does not end its
        turn with it), `kl_share` (distance from the trained model relative to the base's: 0 is the trained model, 1 as
        far from it as the base), `tokens` (how many were compared). Unknown numbers are omitted.
    """
    kept = load_file(reference)
    rows = [_row(form, kept, index) for index in range(sum(name.endswith(".input_ids") for name in kept))]
    divergence = torch.cat([row.kl for row in rows])
    agreement = torch.cat([row.trained.argmax(dim=-1) == row.filled.argmax(dim=-1) for row in rows])
    answered = _answers(form, kept, rows) if answers else []
    numbers = {
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_agreement": agreement.float().mean().item(),
    }
    trained_losses = torch.cat([row.losses(row.trained) for row in rows])
    if len(trained_losses):
        form_losses = torch.cat([row.losses(row.filled) for row in rows])
        numbers["perplexity_change"] = torch.expm1(form_losses.mean() - trained_losses.mean()).item()
    if answered:
        numbers["greedy_agreement"] = sum(answer["trained"] == answer["found"] for answer in answered) / len(answered)
        numbers["unstopped"] = float(sum(_goes_on(answer["trained"], answer["found"]) for answer in answered))
    base = [kept[f"{row.index}.base_kl"] for row in rows if f"{row.index}.base_kl" in kept]
    if base and (far := torch.cat(base).mean().item()) > 0:
        numbers["kl_share"] = numbers["kl_mean"] / far
    numbers["tokens"] = float(len(divergence))
    return Parity(numbers=numbers, tokens=[token for row in rows for token in _tokens(row)], answers=answered)


def _row(form: Form, kept: Mapping[str, Tensor], index: int) -> _Row:
    ids, positions, trained = (kept[f"{index}.{name}"] for name in ("input_ids", "positions", "logits"))
    logits = form.logits(ids, positions)
    width = min(trained.shape[1], logits.shape[1])  # the embeddings of either may be padded
    return _Row(
        index=index, input_ids=ids, positions=positions, trained=trained[:, :width], form=logits[:, :width].float()
    )


def _answers(form: Form, kept: Mapping[str, Tensor], rows: Sequence[_Row]) -> list[Mapping[str, Any]]:
    asked = [row for row in rows if f"{row.index}.continued" in kept]
    continuations = all_continued(form, [prompt(row.input_ids, row.positions) for row in asked], LENGTH)
    return [
        {"row": row.index, "trained": kept[f"{row.index}.continued"].tolist(), "found": found}
        for row, found in zip(asked, continuations, strict=True)
    ]


def _goes_on(trained: list[int], form: list[int]) -> bool:
    return len(form) > len(trained) > 0 and form[: len(trained)] == trained


def _tokens(row: _Row) -> Sequence[Mapping[str, Any]]:
    trained_tops, form_tops = row.trained.argmax(dim=-1).tolist(), row.filled.argmax(dim=-1).tolist()
    tops = zip(trained_tops, form_tops, row.kl.tolist(), strict=True)
    return [
        {
            "row": row.index,
            "position": position,
            "token": int(row.input_ids[position]),
            "trained_top": trained_top,
            "found_top": form_top,
            "kl": divergence,
        }
        for position, (trained_top, form_top, divergence) in zip(row.positions.tolist(), tops, strict=False)
    ]
