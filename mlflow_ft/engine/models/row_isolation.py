"""Do rows that share a forward pass affect each other? Measured on the model itself, before it trains.

Rows are packed into one (`ForPacked`), or padded to one length. A layer that keeps a state across positions (linear
attention, Mamba, RWKV, short convolutions) carries a packed row into the next; so does attention whose mask ignores
positions (ALiBi, OPT, gpt-oss). Nothing fails, and the losses are wrong. Two things are measured:

- content: other tokens in the row before must not change a row's losses. Shapes and therefore rounding are the same,
  so this is exact in any type;
- alone: a row's losses are those that it has alone, up to rounding.

Gradients are not compared: what does not affect a loss gets no gradient from it.
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

from mlflow_ft.engine import batches, row_attention
from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.loss import TokenLoss, causal_model, on_device, suited
from mlflow_ft.engine.models import beginnings, mixing
from mlflow_ft.engine.tokens.masking import IGNORED
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Job

Batch = Mapping[str, Tensor]
Row = Sequence[int]
Collate = Callable[[Sequence[Row]], Batch]
Check = Callable[[Any, bool], None]
"""Called with the model, and whether it computes in a lower precision than that of its weights."""
LOOKED_AT = 200
"""Pairs of rows to compare are taken from so many first rows."""
SHORT, LONG = 8, 65
"""Tokens of each row of a pair: at least, where there are rows that long, and at most."""
OF_A_BATCH = 16
"""Rows of a whole batch that are compared with the same rows alone."""
NOISE = 10
"""A difference counts if it is more than this many times that of two passes that must be equal."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest differences (nats) that may be rounding: of any token in float32, of their mean in other types."""

    content: float
    alone: float


EXACT, ROUGH = Limits(content=1e-5, alone=1e-3), Limits(content=1e-4, alone=5e-2)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How rows affect each other."""

    difference: float
    """Of the loss of a token (nats)."""
    layers: str
    """The layers it passes through, with their classes; "" if none can be named."""


class NeighboursCallback(TrainerCallback):
    """Runs checks on the model when it is ready to train, before the first step.

    Weights that are spread over processes (DeepSpeed, FSDP) cannot be checked this way.
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
    model: Any,
    rows: Sequence[Row],
    collate: Collate,
    *,
    batch: Batch | None = None,
    rough: bool = False,
    unpadded: bool = False,
) -> Seen | None:
    """How rows that `collate` puts into one batch affect each other; None if they do not.

    Args:
        model: as it will train.
        rows: token ids; a few short rows are compared, two at a time, packed rows in both orders.
        collate: gives `input_ids` with `attention_mask`, of shape (rows, length), or with `position_ids`, of shape
            (1, tokens).
        batch: a whole batch, whose rows are compared with the same rows alone.
        rough: whether the model computes in a lower precision than that of its weights.
        unpadded: whether the model itself lays the rows of a padded batch end to end.
    """
    compare = _Comparison(model, rough=rough)
    effects: list[Seen] = []
    for pair in pairs(rows):
        together = collate(pair)
        if "attention_mask" in together and not unpadded:  # a padded batch: any pair shows the same
            difference = compare.alone(together)
            return Seen(difference=difference, layers="") if difference else None
        orders = (pair, pair[::-1])
        for before, after in orders:
            content = compare.content(before, after, collate)
            if difference := max(content, compare.alone(collate([before, after]))):
                layers = effects[0].layers if effects else _layers(model, before, after, collate)
                effects.append(Seen(difference=difference, layers=layers))
    if not effects and batch is not None and (difference := compare.alone(batch)):
        effects.append(Seen(difference=difference, layers=""))
    return max(effects, key=lambda effect: effect.difference, default=None)


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """A few pairs of different lengths, short rows first; long rows are cut, the first one more where all are long."""
    by_length = sorted((row for row in rows if len(row) > 1), key=len)
    by_length = [row for row in by_length if len(row) >= SHORT] or by_length
    if not by_length:
        return []
    shortest, middle, longest = by_length[0], by_length[len(by_length) // 2], by_length[-1]
    first = shortest[: LONG // 2] if len(shortest) >= LONG else shortest
    return [(first, other[:LONG]) for other in (longest, middle)]


class _Comparison:
    """The losses of rows in a batch, compared with those of the same rows alone, or after other rows."""

    def __init__(self, model: Any, *, rough: bool) -> None:
        self._model = model
        self._causal = causal_model(model)
        self._measure: Callable[..., TokenLoss] | None = None
        self._exact = not rough and self._causal.dtype == torch.float32 and not _rounded(self._causal)
        self._limits = EXACT if self._exact else ROUGH

    def content(self, before: Row, row: Row, collate: Collate) -> float:
        """How much the losses of `row` change with the tokens of the row before it; 0 if that may be noise."""
        batches = (collate([first, row]) for first in (before, _changed(self._model, before)))
        if (difference := self._apart(*(self._losses(batch)[1] for batch in batches))) <= self._limits.content:
            return 0.0
        noise = max(self.noise(*pair, collate) for pair in ((before, row), (row, before)))
        return difference if difference > self._limits.content + NOISE * noise else 0.0

    def noise(self, row: Row, after: Row, collate: Collate) -> float:
        """How much the losses of `row` change with the tokens of the row after it, which it cannot see.

        Any change is rounding, such as that of experts that get other numbers of tokens.
        """
        batches = (collate([row, second]) for second in (after, _changed(self._model, after)))
        return min(self._limits.alone, self._apart(*(self._losses(batch)[0] for batch in batches)))

    def alone(self, batch: Batch) -> float:
        """How far the losses of a batch's rows are from those that they have alone; 0 if that may be rounding."""
        rows = _rows(batch)
        together = self._losses(batch)
        chosen = sorted({round(place * (len(rows) - 1) / (OF_A_BATCH - 1)) for place in range(OF_A_BATCH)})
        chosen = [index for index in chosen if len(rows[index]) > 1]
        alone = [self._losses(_single(rows[index]))[0] for index in chosen]
        difference = self._apart(torch.cat([together[index] for index in chosen]), torch.cat(alone)) if chosen else 0.0
        return difference if difference > self._limits.alone else 0.0

    def _apart(self, first: Tensor, second: Tensor) -> float:
        differences = (first - second).abs()
        return float(differences.max() if self._exact else differences.mean())

    @torch.no_grad()
    def _losses(self, batch: Batch) -> list[Tensor]:
        """For each row the losses of all its tokens but the first, in nats; for a model that scores, the score."""
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
    """Whether the weights are held in 8 bits; their rounding depends on all rows of a batch."""
    return any(type(layer).__name__ == "Linear8bitLt" for layer in causal.modules())


def _inside(batch: Batch) -> Tensor:
    """Where there are tokens of rows, except the first of each; bool, of the shape of `input_ids`."""
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        return mask & (mask.cumsum(dim=1) > 1)
    return batch["position_ids"] > 0


def _rows(batch: Batch) -> list[list[int]]:
    """The rows of a batch."""
    ids = batch["input_ids"]
    if "attention_mask" in batch:
        return [row[mask].tolist() for row, mask in zip(ids, batch["attention_mask"].bool(), strict=True)]
    return [row.tolist() for row in ids[0].split(row_attention.lengths(batch))]


def _single(row: Row) -> Batch:
    ids = torch.tensor([row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _layers(model: Any, before: Row, row: Row, collate: Collate) -> str:
    """The layers through which a packed row changes the next.

    The number of tokens is made odd, so that it cannot be mistaken for the model's width.
    """
    before = before[1:] if len(before) > 1 and (len(before) + len(row)) % 2 == 0 else before
    first, second = (collate([tokens, row]) for tokens in (before, _changed(model, before)))
    return mixing.named(model, first, second, begin=len(before)) if "position_ids" in first else ""


def _changed(model: Any, row: Row) -> Row:
    """A row with other tokens."""
    return [(token + 1) % len(causal_model(model).get_input_embeddings().weight) for token in row]


@contextmanager
def _as_it_trains(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as in training, without dropout; random generators are restored afterwards.

    A model that calls dropout as a function is put into evaluation mode instead.
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
    return torch.equal(model(**batch).logits, model(**batch).logits)


def some(data: Data) -> list[Row]:
    """The first training rows, and half of one, so that their lengths differ."""
    rows = [row.input_ids for row in itertools.islice(data.train.encoded, LOOKED_AT)]
    return [*rows, *(row[: len(row) // 2] for row in rows[:1] if len(row) > 1)]


def of_one_beginning(model: Any, rows: Sequence[Row]) -> list[Row]:
    """A row, and another one of another length that begins as it does; [] without rows."""
    begin, end = 2 * beginnings.SHORTEST, 3 * beginnings.SHORTEST
    longest: Row = max(rows, key=len, default=())
    row = (list(longest) * end)[:end]
    return [row, [*row[:begin], *_changed(model, row[begin:-1])]] if row else []


def padding(pad_token_id: int) -> Collate:
    """Pads rows of token ids on the right; every token is learned."""

    def collate(rows: Sequence[Row]) -> Batch:
        encoded = [Encoded(input_ids=tuple(row), labels=tuple(row)) for row in rows]
        return batches.padded(encoded, pad_token_id=pad_token_id)

    return collate


def padded(job: Job, data: Data, trainer: Any) -> Check:
    """A check that padding changes no row, for a trainer that pads on the right."""
    collate = padding(data.tokenizer.pad_token_id)

    def check(model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        if job.config.training.batch_size > 1:
            refuse_padding(job, see_each_other(model, some(data), collate, rough=rough))

    return check


def refuse_padding(job: Job, seen: Seen | None) -> None:
    """Raise ConfigError if the rows of a padded batch change each other."""
    if seen:
        size, steps = job.config.training.batch_size, job.config.training.gradient_accumulation_steps
        raise ConfigError(
            f"on this model, rows in a padded batch affect each other, by up to {seen.difference:.2g} nats a token",
            hint="use one row at a time: --training.per_device_train_batch_size 1 "
            f"--training.gradient_accumulation_steps {size * steps}",
        )
