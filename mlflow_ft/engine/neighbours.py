"""Whether rows that share a forward pass leave each other alone, measured on the model itself before it trains.

Rows are packed into one (`ForPacked`), or padded to one length. A layer that keeps a state across positions (linear
attention, Mamba, RWKV, short convolutions) carries a packed row into the next; so does attention whose mask does not
look at the positions (ALiBi, OPT, gpt-oss). Nothing fails then, and the losses are wrong. Two things are measured:

- content: other tokens in the row before must not change a row's losses. The shapes are the same, and so is every
  rounding, so this is exact in any type;
- alone: a row's losses are those that it has alone, up to rounding.

Gradients are not compared: what does not reach a loss has no gradient through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine import batches, mixing
from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.loss import TokenLoss, causal_model, on_device, suited
from mlflow_ft.engine.masking import IGNORED
from mlflow_ft.errors import ConfigError
from mlflow_ft.job import Data, Encoded, Job

Batch = Mapping[str, Tensor]
Row = Sequence[int]
Collate = Callable[[Sequence[Row]], Batch]
Check = Callable[[Any, bool], None]
"""Gets the model, and whether it computes in a type of lower precision than that of its weights."""
PAIRS, LOOKED_AT = 2, 200
"""How many pairs of rows are compared, taken from the first rows."""
SHORT, LONG = 8, 65
"""Tokens of a row of a pair, at least where there are such rows, and at most."""
OF_A_BATCH = 16
"""Rows of a whole batch that are compared with themselves alone."""
NOISE = 10
"""A difference counts beyond so many times the one between two passes that must be the same."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest differences (nats) that are rounding: of a token in float32, of the mean of tokens in other types."""

    content: float
    alone: float


EXACT, ROUGH = Limits(content=1e-5, alone=1e-3), Limits(content=1e-4, alone=5e-2)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What rows do to each other."""

    difference: float
    """Of the loss of a token (nats)."""
    layers: str
    """The layers that carry it over, with their classes; "" where none can be named."""


class NeighboursCallback(TrainerCallback):
    """Makes checks on the model when it is ready to train, before anything is computed with it.

    Weights that are spread over processes cannot be looked at so.
    """

    def __init__(self, *checks: Check) -> None:
        self._checks = checks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if args.deepspeed or args.fsdp:
            return
        with _as_it_trains(more["model"]):
            for check in self._checks:
                check(more["model"], args.bf16 or args.fp16)


def see_each_other(
    model: Any, rows: Sequence[Row], collate: Collate, *, batch: Batch | None = None, rough: bool = False
) -> Seen | None:
    """What rows that `collate` lays side by side do to each other; None where they leave each other alone.

    Args:
        model: as it will train.
        rows: token ids; a few short ones of them are compared, two at a time, packed ones in both orders.
        collate: gives `input_ids` with `attention_mask`, of shape (rows, length), or with `position_ids`, of shape
            (1, tokens).
        batch: a whole batch, whose rows are compared with themselves alone.
        rough: whether it computes in a type of lower precision than that of its weights.
    """
    look = _Look(model, rough=rough)
    found: list[Seen] = []
    for first, second in pairs(rows):
        laid = collate([first, second])
        if "attention_mask" in laid:  # a batch of rows that are padded, for which it is the same in any pair
            difference = look.alone(laid)
            return Seen(difference=difference, layers="") if difference else None
        both = ((first, second), (second, first))
        noise = max(look.noise(one, other, collate) for one, other in both)
        for one, other in both:
            if difference := max(look.content(one, other, collate, noise), look.alone(collate([one, other]))):
                layers = found[0].layers if found else _layers(model, one, other, collate)
                found.append(Seen(difference=difference, layers=layers))
    if not found and batch is not None and (difference := look.alone(batch)):
        found.append(Seen(difference=difference, layers=""))
    return max(found, key=lambda seen: seen.difference, default=None)


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """A few pairs of unlike length, short rows first; the ends of long ones are left out."""
    known = sorted((row for row in rows if len(row) > 1), key=len)
    known = [row for row in known if len(row) >= SHORT] or known
    if not known:
        return []
    middle = len(known) // 2
    chosen = [(known[0], known[-1]), (known[0], known[middle]), (known[middle // 2], known[middle])][:PAIRS]
    return [(one[:LONG], other[:LONG]) for one, other in chosen]


class _Look:
    """The losses of rows in a batch, beside those of the same rows alone, or beside other rows."""

    def __init__(self, model: Any, *, rough: bool) -> None:
        self._model = model
        self._causal = causal_model(model)
        self._measure: Callable[..., TokenLoss] | None = None
        self._exact = not rough and self._causal.dtype == torch.float32 and not _rounded(self._causal)
        self._limits = EXACT if self._exact else ROUGH

    def content(self, one: Row, other: Row, collate: Collate, noise: float) -> float:
        """How far the losses of `other` change with the tokens of the row `one` before it; 0 where it is `noise`."""
        laid = (collate([before, other]) for before in (one, _changed(self._model, one)))
        difference = self._apart(*(self._losses(batch)[1] for batch in laid))
        return difference if difference > self._limits.content + NOISE * noise else 0.0

    def noise(self, one: Row, other: Row, collate: Collate) -> float:
        """How far the losses of `other` seem to change with the tokens of the row `one` behind it.

        They cannot; that they do is rounding, as of experts that get other numbers of tokens.
        """
        laid = (collate([other, behind]) for behind in (one, _changed(self._model, one)))
        return min(self._limits.alone, self._apart(*(self._losses(batch)[0] for batch in laid)))

    def alone(self, batch: Batch) -> float:
        """How far the losses of the rows in a batch are from those they have alone; 0 where it is rounding."""
        rows = _rows(batch)
        together = self._losses(batch)
        chosen = sorted({round(place * (len(rows) - 1) / (OF_A_BATCH - 1)) for place in range(OF_A_BATCH)})
        chosen = [index for index in chosen if len(rows[index]) > 1]
        alone = [self._losses(_single(rows[index]))[0] for index in chosen]
        difference = self._apart(torch.cat([together[index] for index in chosen]), torch.cat(alone)) if chosen else 0.0
        return difference if difference > self._limits.alone else 0.0

    def _apart(self, one: Tensor, other: Tensor) -> float:
        differences = (one - other).abs()
        return float(differences.max() if self._exact else differences.mean())

    @torch.no_grad()
    def _losses(self, batch: Batch) -> list[Tensor]:
        """Of every row the losses of its tokens but the first, in nats; of a model that scores, the score."""
        inputs = on_device(batch, self._causal.device)
        inputs.pop("labels", None)
        if not self._causal.can_generate():
            return list(self._model(**inputs, use_cache=False).logits[:, :1].float())
        learned = _inside(batch).to(self._causal.device)
        inputs["labels"] = inputs["input_ids"].masked_fill(~learned, IGNORED)
        if self._measure is None:
            self._measure = suited(self._model, inputs)
        return list(self._measure(self._model, inputs).nll.split([max(0, len(row) - 1) for row in _rows(batch)]))


def _rounded(causal: nn.Module) -> bool:
    """Whether the weights are held in 8 bits, whose rounding depends on all rows of a batch."""
    return any(type(layer).__name__ == "Linear8bitLt" for layer in causal.modules())


def _inside(batch: Batch) -> Tensor:
    """Where the tokens of rows are, but for the first of each; bool, of the shape of `input_ids`."""
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        return mask & (mask.cumsum(dim=1) > 1)
    return batch["position_ids"] > 0


def _rows(batch: Batch) -> list[list[int]]:
    """The rows that are in a batch."""
    ids = batch["input_ids"]
    if "attention_mask" in batch:
        return [row[mask].tolist() for row, mask in zip(ids, batch["attention_mask"].bool(), strict=True)]
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    return [ids[0, start:end].tolist() for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True)]


def _single(row: Row) -> Batch:
    ids = torch.tensor([row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _layers(model: Any, one: Row, other: Row, collate: Collate) -> str:
    """The layers that carry the row `one` over to `other`, where they lie behind each other in one row.

    An odd number of tokens is no model's width, for which it could be taken.
    """
    one = one[1:] if len(one) > 1 and (len(one) + len(other)) % 2 == 0 else one
    first, second = (collate([before, other]) for before in (one, _changed(model, one)))
    return mixing.told(model, first, second, begin=len(one)) if "position_ids" in first else ""


def _changed(model: Any, row: Row) -> Row:
    """A row with other tokens."""
    return [(token + 1) % len(causal_model(model).get_input_embeddings().weight) for token in row]


@contextmanager
def _as_it_trains(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as in training, but for dropout; no random number is drawn for good.

    Some models hold their dropout in functions: these are looked at as in evaluation.
    """
    with aside(model):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.eval()
        if not _same_twice(model):
            model.eval()
        yield


@torch.no_grad()
def _same_twice(model: Any) -> bool:
    ids = torch.arange(8, device=causal_model(model).device)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    one, other = (model(**batch).logits for _ in range(2))
    return torch.equal(one, other)


def some(data: Data) -> list[Row]:
    """The first training rows, and half of one, so that not all are of one length."""
    rows = [row.input_ids for row in itertools.islice(data.train.encoded, LOOKED_AT)]
    return [*rows, *(row[: len(row) // 2] for row in rows[:1] if len(row) > 1)]


def padded(job: Job, data: Data, trainer: Any) -> Check:
    """A check that padding changes nothing of a row, for a trainer that pads on the right."""

    def collate(rows: Sequence[Row]) -> Batch:
        encoded = [Encoded(input_ids=tuple(row), labels=tuple(row)) for row in rows]
        return batches.padded(encoded, pad_token_id=data.tokenizer.pad_token_id)

    def check(model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        if job.config.training.per_device_train_batch_size > 1:
            refuse_padding(job, see_each_other(model, some(data), collate, rough=rough))

    return check


def refuse_padding(job: Job, seen: Seen | None) -> None:
    """Raise ConfigError where the rows of a padded batch change each other."""
    if seen:
        size, steps = job.config.training.per_device_train_batch_size, job.config.training.gradient_accumulation_steps
        raise ConfigError(
            f"the rows of a padded batch change each other on this model, by up to {seen.difference:.2g} nats a token",
            hint="take one row at a time: --training.per_device_train_batch_size 1 "
            f"--training.gradient_accumulation_steps {size * steps}",
        )
