"""The place of a training in its rows: the state of samplers when the epoch began, and the batch that comes next.

A sampler draws the order of an epoch when the epoch begins, from its own generator or torch's. So that the rest of an
interrupted epoch has the same order, both are put back to where they were then.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mlflow_ft.engine import generators
from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.checkpoints import tree
from mlflow_ft.hashes import canonical


class Order:
    """Follows the order of rows of a transformers Trainer."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._began: dict[str, Any] = {}

    def begin_epoch(self) -> None:
        """Remember the state in which the epoch begins; called before its first batch is drawn."""
        self._began = {"random": generators.collect(), "samplers": self._samplers()}

    def put_back(self, began: dict[str, Any]) -> None:
        """Put samplers and generators back to where an epoch began."""
        for sampler, state in zip(self._with_generators(), began["samplers"], strict=True):
            sampler.generator.set_state(state)
        generators.restore(began["random"])
        self._began = began

    def collect(self) -> dict[str, Any]:
        """For a checkpoint: how this epoch and the next begin, and the row numbers and content of the next batch."""
        now = {"random": generators.collect(), "samplers": self._samplers()}
        epoch, batches = self._place()
        began = self._began if batches else now
        numbers = self._numbers(began, epoch, batches)
        return {"epoch": epoch, "batches": batches, "began": began, "next_rows": numbers, "next": self._digest(numbers)}

    def _place(self) -> tuple[int, int]:
        """The epoch of the next step, and the batches of it that were used."""
        trainer = self._trainer
        accumulation = trainer.args.gradient_accumulation_steps
        steps = max(1, -(-len(self._loader) // accumulation))
        epoch, done = divmod(trainer.state.global_step, steps)
        return epoch, done * accumulation

    @property
    def _loader(self) -> Any:
        return self._trainer.callback_handler.train_dataloader

    def _with_generators(self) -> list[Any]:
        """The samplers that draw from a generator of their own; a seedable one gets its seed from the epoch."""
        samplers, sampler = [], getattr(self._loader, "batch_sampler", None)
        while sampler is not None:
            if isinstance(getattr(sampler, "generator", None), torch.Generator) and not hasattr(sampler, "set_epoch"):
                samplers.append(sampler)
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
        return samplers

    def _samplers(self) -> list[Any]:
        return [sampler.generator.get_state() for sampler in self._with_generators()]

    def _numbers(self, began: dict[str, Any], epoch: int, batches: int) -> list[int]:
        """The numbers of the rows in the next batch; empty if the loader does not draw batches by row numbers."""
        sampler = getattr(self._loader, "batch_sampler", None)
        if sampler is None:
            return []
        with self._undisturbed(epoch), aside():
            generators.restore(began["random"])
            for inner, state in zip(self._with_generators(), began["samplers"], strict=True):
                inner.generator.set_state(state)
            torch.empty((), dtype=torch.int64).random_()  # the seed that a loader draws for its workers, first
            batch: list[int] = next(itertools.islice(iter(sampler), batches, None), [])
        return [int(number) for number in batch]

    @contextmanager
    def _undisturbed(self, epoch: int) -> Iterator[None]:
        """Inside the block samplers may be used; afterwards they are as before."""
        states = self._samplers()
        seedable: Any = getattr(getattr(self._loader, "batch_sampler", None), "sampler", None)
        before = getattr(seedable, "epoch", None)
        generator: Any = getattr(seedable, "generator", None)
        drawn = generator.get_state() if isinstance(generator, torch.Generator) else None
        try:
            if before is not None:
                seedable.set_epoch(epoch)
            yield
        finally:
            if before is not None:
                seedable.set_epoch(before)
            if drawn is not None:
                generator.set_state(drawn)
            for sampler, state in zip(self._with_generators(), states, strict=True):
                sampler.generator.set_state(state)

    def _digest(self, numbers: list[int]) -> str:
        """The digest of a batch of these rows."""
        if not numbers or not hasattr(self._loader, "collate_fn"):
            return ""
        with aside():
            rows = [self._loader.dataset[number] for number in numbers]
            return digest(self._loader.collate_fn(rows))


def digest(batch: Any) -> str:
    """sha256 over the content of a batch: tensors of any device, numbers and texts."""
    tensors: dict[str, torch.Tensor] = {}
    content = tree.taken_apart(dict(batch) if isinstance(batch, Mapping) else batch, tensors)
    total = hashlib.sha256(canonical(content))
    for name in sorted(tensors):
        total.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
