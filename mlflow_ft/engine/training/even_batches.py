"""Several processes take the rows of one process: each step has the same rows, and no row comes twice in an epoch.

accelerate fills the last step of an epoch with rows from its beginning, so that all processes have full batches. Here
the rows that are left are spread over the processes, and each process's mean loss counts by its rows. A process for
which no row is left computes the loss of any row, because the others wait for its gradients, and that loss counts 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from mlflow_ft.engine import ranks
from mlflow_ft.engine.tokens.masking import IGNORED

STANDS_IN = "stands_in"
"""The key of a batch whose row only stands in for a row that this process does not have."""
KINDS = (RandomSampler, SequentialSampler)
"""Samplers whose rows are single; samplers of other kinds order their rows for one batch size."""


class EvenBatches(BatchSampler):
    """Batches in the order in which accelerate deals them out: one for each process, then the next step.

    Args:
        sampler: draws the rows of an epoch.
        size: rows of a process and step.
        processes: how many processes there are.
    """

    def __init__(self, sampler: Sampler[int], *, size: int, processes: int) -> None:
        self.sampler = sampler
        self._size, self._processes = size, processes

    def __len__(self) -> int:
        step = self._size * self._processes
        return -(-len(self.sampler) // step) * self._processes  # type: ignore[arg-type]  # these have a length

    def __iter__(self) -> Iterator[list[int]]:
        rows: list[int] = []
        for row in self.sampler:
            rows.append(row)
            if len(rows) == self._size * self._processes:
                yield from (rows[start : start + self._size] for start in range(0, len(rows), self._size))
                rows = []
        if rows:
            yield from spread(rows, self._processes)


def spread(rows: list[int], processes: int) -> Iterator[list[int]]:
    """The last rows of an epoch in one batch for each process, an empty one where none is left."""
    size, more = divmod(len(rows), processes)
    start = 0
    for number in range(processes):
        end = start + size + (number < more)
        yield rows[start:end]
        start = end


def install(trainer: Any, *, by_tokens: bool) -> None:
    """Deal rows out evenly, in training and evaluation; with one process, do nothing.

    Args:
        by_tokens: whether the trainer's loss is a mean over the tokens of all processes; else over a process's rows.
    """
    if ranks.size() == 1:
        return
    accelerator = trainer.accelerator
    prepare, gathers = accelerator.prepare_data_loader, Gathers(accelerator)

    def prepared(loader: DataLoader[Any], *arguments: Any, **options: Any) -> Any:
        if isinstance(loader.sampler, KINDS) and loader.batch_size:
            batches = EvenBatches(loader.sampler, size=loader.batch_size, processes=ranks.size())
            loader = with_batches(loader, batches, by_tokens=by_tokens)
        return prepare(loader, *arguments, **options)

    accelerator.prepare_data_loader = prepared
    if not by_tokens:
        trainer.compute_loss = weighted(trainer.compute_loss, gathers)
        trainer.prediction_step = weighted_prediction(trainer.prediction_step, gathers)


def with_batches(loader: DataLoader[Any], batches: BatchSampler, *, by_tokens: bool) -> DataLoader[Any]:
    """The same loader with other batches; `by_tokens` as for `install`."""
    kept = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor")
    options = {name: getattr(loader, name) for name in (*kept, "persistent_workers", "pin_memory_device")}
    options["collate_fn"] = ForNone(loader.collate_fn, loader.dataset, by_tokens=by_tokens)
    return DataLoader(loader.dataset, batch_sampler=batches, **options)


class ForNone:
    """Collates no rows as the first row of the data set, marked STANDS_IN; with `by_tokens` no token is learned."""

    def __init__(self, collate: Callable[[list[Any]], Any], rows: Any, *, by_tokens: bool) -> None:
        self._collate, self._rows, self._by_tokens = collate, rows, by_tokens

    def __call__(self, rows: list[Any]) -> Any:
        """The batch of these rows."""
        if rows:
            return self._collate(rows)
        batch = self._collate([self._rows[0]])
        if self._by_tokens:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return {**batch, STANDS_IN: torch.ones(1)}


class Gathers:
    """Gathers tensors that have as many rows as each process has: accelerate's gathers need equal shapes.

    Its own are used in a step in which the processes have the same number of rows.
    """

    def __init__(self, accelerator: Any) -> None:
        self.equal = False
        self.left_out = False
        """Whether this process has no row of its own, and contributes nothing."""
        for name in ("gather", "gather_for_metrics"):
            setattr(accelerator, name, self._either(getattr(accelerator, name)))

    def _either(self, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values, *more, **options: own(values, *more, **options) if self.equal else self.uneven(values)

    def uneven(self, values: Any) -> Any:
        """The rows of all processes, in the order of the processes; of a tensor, or of those in a list or a mapping."""
        if isinstance(values, Tensor):
            share = values.detach().cpu()
            share = share.reshape(1) if share.dim() == 0 else share
            return torch.cat(ranks.gather(share[:0] if self.left_out else share)).to(values.device)
        if isinstance(values, Mapping):
            return {name: self.uneven(value) for name, value in values.items()}
        if isinstance(values, list | tuple):
            return type(values)(self.uneven(value) for value in values)
        return values

    @contextmanager
    def of(self, inputs: dict[str, Any]) -> Iterator[float]:
        """While the batch `inputs` is used, gather by its rows; yields its rows over the mean of the processes.

        The mark STANDS_IN is removed from it.
        """
        self.left_out = inputs.pop(STANDS_IN, None) is not None
        rows = next(value for value in inputs.values() if isinstance(value, Tensor) and value.dim()).shape[0]
        counts = ranks.gather(0 if self.left_out else rows)
        self.equal = len(set(counts)) == 1
        try:
            yield 1.0 if self.equal else counts[ranks.rank()] * len(counts) / sum(counts)
        finally:
            self.equal = self.left_out = False


def weighted(compute: Callable[..., Any], gathers: Gathers) -> Callable[..., Any]:
    """`compute_loss`, multiplied so that the mean over the processes is the mean over the rows of all of them.

    `weighted_prediction` does it for held-out rows: not every trainer calls `compute_loss` for them.
    """

    def compute_loss(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if not model.training:
            return compute(model, inputs, *arguments, **options)
        with gathers.of(inputs) as share:
            result = compute(model, inputs, *arguments, **options)
        if share == 1:
            return result
        return (result[0] * share, *result[1:]) if isinstance(result, tuple) else result * share

    return compute_loss


def weighted_prediction(predict: Callable[..., Any], gathers: Gathers) -> Callable[..., Any]:
    """`prediction_step`, whose loss transformers then averages over the processes, weighted in the same way."""

    def prediction_step(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        with gathers.of(inputs) as share:
            loss, *rest = predict(model, inputs, *arguments, **options)
        return (loss if loss is None or share == 1 else loss * share, *rest)

    return prediction_step
