"""Several processes take the rows of one process: each step has the same rows, and no row comes twice in an epoch.

accelerate fills the last step of an epoch with rows from its beginning, so that all processes have full batches. Here
the rows that are left are spread over the processes, and each process's mean loss counts by its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from mlflow_ft.engine import ranks

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
    """The last rows of an epoch in one batch for each process; a process for which none is left repeats the last."""
    size, more = divmod(len(rows), processes)
    start = 0
    for number in range(processes):
        end = start + size + (number < more)
        yield rows[start:end] or rows[-1:]
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
            loader = with_batches(loader, batches)
        return prepare(loader, *arguments, **options)

    accelerator.prepare_data_loader = prepared
    if not by_tokens:
        trainer.compute_loss = weighted(trainer.compute_loss, gathers)


def with_batches(loader: DataLoader[Any], batches: BatchSampler) -> DataLoader[Any]:
    """The same loader with other batches."""
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor")
    options = {name: getattr(loader, name) for name in (*kept, "persistent_workers", "pin_memory_device")}
    return DataLoader(loader.dataset, batch_sampler=batches, **options)


class Gathers:
    """Gathers tensors that have as many rows as each process has: accelerate's gathers need equal shapes.

    Its own are used in a step in which the processes have the same number of rows.
    """

    def __init__(self, accelerator: Any) -> None:
        self.equal = False
        for name in ("gather", "gather_for_metrics"):
            setattr(accelerator, name, self._either(getattr(accelerator, name)))

    def _either(self, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values, *more, **options: own(values, *more, **options) if self.equal else self.uneven(values)

    def uneven(self, values: Any) -> Any:
        """The rows of all processes, in the order of the processes; of a tensor, or of those in a list or a mapping."""
        if isinstance(values, Tensor):
            parts = ranks.gather(values.detach().cpu().reshape(1) if values.dim() == 0 else values.detach().cpu())
            return torch.cat(parts).to(values.device)
        if isinstance(values, Mapping):
            return {name: self.uneven(value) for name, value in values.items()}
        if isinstance(values, list | tuple):
            return type(values)(self.uneven(value) for value in values)
        return values


def weighted(compute: Callable[..., Any], gathers: Gathers) -> Callable[..., Any]:
    """`compute_loss`, multiplied so that the mean over the processes is the mean over the rows of all of them."""

    def compute_loss(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        rows = next(value for value in inputs.values() if isinstance(value, Tensor) and value.dim()).shape[0]
        counts = ranks.gather(rows)
        gathers.equal = len(set(counts)) == 1
        try:
            result = compute(model, inputs, *arguments, **options)
        finally:
            equal, gathers.equal = gathers.equal, False
        if equal:
            return result
        share = rows * len(counts) / sum(counts)
        return (result[0] * share, *result[1:]) if isinstance(result, tuple) else result * share

    return compute_loss
