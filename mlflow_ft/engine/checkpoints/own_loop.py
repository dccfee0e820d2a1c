"""Checkpoints for a method that trains in a loop of its own, not in a transformers Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from mlflow_ft.engine import generators, ranks
from mlflow_ft.engine.checkpoints import folder
from mlflow_ft.engine.checkpoints.comparison import Comparison
from mlflow_ft.engine.checkpoints.keeper import Keeper
from mlflow_ft.engine.checkpoints.of_trainer import OTHERS, of_this_process, processes, restore_weights
from mlflow_ft.errors import ModelError
from mlflow_ft.values import Job

RANDOM, WEIGHTS = "random", "weights"


class Resumable(Protocol):
    """A training that can say all that decides how it continues."""

    def weights(self) -> dict[str, Tensor]:
        """The weights that train, by name; they are restored in place."""

    def state_dict(self) -> dict[str, Any]:
        """Everything else but the global random generators, as nested dicts and lists of plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


@contextmanager
def checkpoints(job: Job, training: Resumable, *, writes: bool = True) -> Iterator[Checkpoints]:
    """Write checkpoints after the steps where one is due, and restore the one from which a job is resumed.

    At the end of the block the last checkpoint is on the disk. `writes` is False in all processes of a training but
    one.

    with checkpoints(job, training) as kept:
        kept.restore()
        for step in range(training.step + 1, steps + 1):
            ...
            if kept.after_step(step, steps):
                break
    """
    with Keeper(job) as keeper:
        keeper.begin()
        yield Checkpoints(job, training, keeper, writes=writes)


class Checkpoints:
    """The checkpoints of a training."""

    def __init__(self, job: Job, training: Resumable, keeper: Keeper, *, writes: bool) -> None:
        self._job, self._training, self._keeper, self._writes = job, training, keeper, writes

    def after_step(self, step: int, steps: int, *, loss: float | None = None) -> bool:
        """Write a checkpoint if one is due; returns True after a signal: the training must end here.

        Args:
            step: optimizer steps so far, counted from 1.
            steps: steps of the whole training.
            loss: the held-out loss of these weights, if it was measured; the checkpoint with the lowest is kept.
        """
        due = self._writes and self._keeper.due(step, steps)
        stopping, due = ranks.any_of(self._job.run.stopping, due)
        if stopping or due:
            parts = self._parts()
            if self._writes:
                self._keeper.save(step, parts, loss=loss, wait=stopping)
        return stopping

    def restore(self) -> bool:
        """Restore the job's checkpoint, and prove that all is as it was saved; False if there is none.

        Call it right before the next step: what follows must not draw random numbers first.

        Raises:
            RefusedError: something that was restored differs. ModelError: the checkpoint belongs to another model, or
            to another number of processes.
        """
        resume = self._job.resume
        if resume is None or resume.checkpoint is None:
            return False
        parts = folder.read(resume.checkpoint)
        if (number := processes(parts)) != ranks.size():
            raise ModelError(
                f"{number} processes trained until now, and this training cannot continue with {ranks.size()}",
                hint=f"resume it with {number} processes",
            )
        parts = of_this_process(parts)
        restore_weights(self._training.weights(), parts[WEIGHTS])
        self._training.load_state_dict({name: part for name, part in parts.items() if name not in (RANDOM, WEIGHTS)})
        generators.restore(parts[RANDOM])
        comparison = Comparison(self._job, resume)
        restored = self._parts()
        for name, part in parts.items():
            comparison.compare(name, part, restored[name])
        comparison.report()
        return True

    def _parts(self) -> dict[str, Any]:
        weights = {name: weight.detach() for name, weight in self._training.weights().items()}
        own = {RANDOM: generators.collect(), **self._training.state_dict()}
        others = ranks.gather(own)[1:]
        return {WEIGHTS: weights, **own, **({OTHERS: others} if others and ranks.leads() else {})}
