"""When a training writes checkpoints, and what happens to them: synced in the background, counted, uploaded."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine import ranks
from mlflow_ft.engine.checkpoints import best, folder
from mlflow_ft.values import Job

MINUTE = 60.0
log = logging.getLogger(__name__)


class Keeper:
    """Writes a training's checkpoints into `train/checkpoints` of the run's folder."""

    def __init__(self, job: Job, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.parent = place(job)
        self._job, self._clock = job, clock
        self._every = job.config.training.save_every
        self._last = clock()
        begins = job.resume.step if job.resume else 0  # what is later belongs to an attempt that is made again
        self._best = next(iter(best.measured(self.parent, until=begins)), None)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-ft-checkpoint")
        self._finishing: Future[None] | None = None

    def begin(self) -> None:
        """Start the clock: the first step begins."""
        self._last = self._clock()

    def due(self, step: int, max_steps: int) -> bool:
        """Whether a checkpoint is to be written after this step; after the last one always.

        With it the stages after the training can be resumed on another machine.
        """
        if step >= max_steps:
            return True
        number, unit = self._every
        if unit == "minutes":
            return self._clock() - self._last >= number * MINUTE
        steps = math.ceil(number * max_steps) if unit == "share" else int(number)
        return step % max(1, steps) == 0

    def save(
        self,
        step: int,
        parts: folder.Parts,
        *,
        loss: float | None = None,
        more: Callable[[Path], None] = lambda _: None,
        frozen: Callable[[], str] = str,
        wait: bool = False,
    ) -> None:
        """Write a checkpoint; unless `wait`, it is synced, hashed and uploaded while training continues.

        A full disk costs this checkpoint, with a warning, not the training.

        Args:
            step: optimizer steps so far.
            parts: the state, each part a tree (`checkpoints.tree`).
            loss: the held-out loss of these weights, if it was measured; the checkpoint with the lowest is kept.
            more: writes further files into the folder.
            frozen: computes the digest of the weights that do not train.
            wait: whether the checkpoint must be on the disk when this returns.
        """
        self._settle()
        self._last = self._clock()
        try:
            partial = folder.write(self.parent, step, parts)
            more(partial)
        except OSError as error:
            self._warn(step, error)
            return
        facts = {"step": step, "method": self._job.config.method, "time": time.time(), "eval_loss": loss}
        self._finishing = self._thread.submit(self._finish, partial, facts, frozen)
        if wait:
            self._settle()

    def _finish(self, partial: Path, facts: dict[str, Any], frozen: Callable[[], str]) -> None:
        try:
            finished = folder.finish(partial, facts | {"frozen_sha256": frozen()})
        except OSError as error:
            self._warn(facts["step"], error)
            return
        loss = facts["eval_loss"]
        if loss is not None and math.isfinite(loss) and (self._best is None or loss < self._best.loss):
            self._best = best.Measured(step=facts["step"], loss=loss, folder=finished)
        settings, lowest = self._job.config.training, self._best
        folder.remove_old(self.parent, keep=settings.save_total_limit, best=lowest.step if lowest else None)
        if settings.upload_checkpoints:
            beside = lowest.folder if lowest and settings.loads_best else None
            self._job.run.upload_checkpoint(finished, beside=beside)

    def _warn(self, step: int, error: OSError) -> None:
        shutil.rmtree(self.parent / f"{folder.name(step)}{folder.PARTIAL}", ignore_errors=True)
        self._job.progress.warn(
            f"the checkpoint of step {step} could not be written under {self.parent}: {error.strerror or error}; "
            "training continues"
        )

    def _settle(self) -> None:
        """Wait for the checkpoint that is being synced; raises what went wrong."""
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last checkpoint."""
        self._thread.shutdown()


def place(job: Job) -> Path:
    """The folder of a run's checkpoints."""
    return job.folder / "train" / "checkpoints"


class DueCallback(TrainerCallback):
    """Asks for a checkpoint when one is due, and after the step in which a signal arrived, which ends the training.

    All processes do the same: they stop if a signal reached any of them, and rank 0's clock says what is due.
    """

    def __init__(self, job: Job, keeper: Keeper) -> None:
        self._job, self._keeper = job, keeper
        self.stopping = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._keeper.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = ranks.leads() and self._keeper.due(state.global_step, state.max_steps)
        self.stopping, due = ranks.any_of(self._job.run.stopping, due)
        if self.stopping:
            control.should_training_stop = True
        if self.stopping or due:
            control.should_save = True
