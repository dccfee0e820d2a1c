"""A transformers Trainer that writes checkpoints, and continues from one after proving that everything is as it was."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine import ranks
from mlflow_ft.engine.checkpoints import folder, of_trainer
from mlflow_ft.engine.checkpoints.comparison import Comparison
from mlflow_ft.engine.checkpoints.keeper import DueCallback, Keeper
from mlflow_ft.engine.checkpoints.order import Order, digest
from mlflow_ft.engine.launching import zero
from mlflow_ft.values import Job

STATE_FILE = "trainer_state.json"
"""The file in which transformers keeps step, epoch and the metrics so far."""
LOSS = "eval_loss"
SUMMARY = "train_runtime"
EVALUATION_DUE = "evaluation_due"
ENDED = "ended"
"""The part of a checkpoint that says whether a callback ended the training there."""


class AlreadyTrainedError(Exception):
    """The checkpoint was written after the last step, or after the one in which a callback ended the training."""


class StoppedAfterSavingError(Exception):
    """A signal arrived, and the checkpoint is on the disk: the training ends here."""


def train(trainer: Any, job: Job) -> tuple[int, float]:
    """Train to the end with checkpoints, from the job's checkpoint if it has one; returns the steps and the mean loss.

    After a signal it returns early: the checkpoint is on the disk, and leaving `deferring_stop` raises.

    Raises:
        RefusedError: something is not as it was saved.
    """
    with Keeper(job) as keeper:
        result = Resumable(trainer, job, keeper).train()
    of_trainer.settle(trainer)
    return result


class Resumable:
    """Connects a trainer with its checkpoints.

    transformers calls `_save_checkpoint` after log and evaluation of a step, and the `_load` methods at the places
    where a resumed training needs each part; these are replaced on the trainer.
    """

    def __init__(self, trainer: Any, job: Job, keeper: Keeper) -> None:
        self._trainer, self._job, self._keeper = trainer, job, keeper
        self._order = Order(trainer)
        self._frozen = ""
        self._evaluation_due = self._finishing = False
        self._checkpoint = job.resume.checkpoint if job.resume else None
        self._comparison = Comparison(job, job.resume) if job.resume and self._checkpoint else None
        saved = folder.read(self._checkpoint) if self._checkpoint else {}
        self._processes = of_trainer.processes(saved) if saved else ranks.size()
        self._parts = of_trainer.of_this_process(saved) if saved else {}
        self._next = self._parts["data"]["next"] if "data" in self._parts else ""
        self.ended = bool(self._parts.pop(ENDED, False))
        trainer._save_checkpoint = self._save
        trainer._load_from_checkpoint = lambda *_, **__: None
        trainer._load_scaler = lambda *_, **__: None
        trainer._load_optimizer_and_scheduler = self._restore
        trainer._load_rng_state = self._restore_rest
        self._due = DueCallback(job, keeper)
        trainer.add_callback(self._due)
        trainer.add_callback(PlaceCallback(self))

    def train(self) -> tuple[int, float]:
        """See the function `train`."""
        if self._checkpoint:
            self._trainer.args.eval_on_start = False
            self._see_first_batch()
            self._job.progress.say(f"resuming after step {folder.step_of(self._checkpoint)}")
            if self._processes != ranks.size():
                self._job.progress.warn(self._other_processes())
        try:
            with zero.training():
                result = self._trainer.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        except AlreadyTrainedError:
            return self._without_steps()
        except StoppedAfterSavingError:
            return self._trainer.state.global_step, math.nan
        return result.global_step, float(result.training_loss)

    def _other_processes(self) -> str:
        return (
            f"{self._processes} {'process' if self._processes == 1 else 'processes'} trained until then, now "
            f"{ranks.size()}: dropout is drawn anew, and if the rows of a step changed, so did the order of the rest"
        )

    def _without_steps(self) -> tuple[int, float]:
        """Nothing is left to train: the weights are restored, and an evaluation may be due."""
        self._finishing = True
        if "data" in self._parts:
            self._order.put_back(self._parts["data"]["began"])
        self._restore_rest()
        self.check_first()
        trainer = self._trainer
        loss = trainer._total_loss_scalar + float(trainer._tr_loss)
        trainer.log({SUMMARY: 0.0})  # as at the end of a training: what was counted since the last log
        return trainer.state.global_step, loss / max(1, trainer.state.global_step)

    # --- writing

    def _save(self, *_: Any) -> None:
        """Write a checkpoint; called by the trainer after log and evaluation of a step."""
        trainer = self._trainer
        step, last = trainer.state.global_step, trainer.state.global_step >= trainer.state.max_steps
        if last:  # the optimizer, which could do it later, is not kept
            of_trainer.settle(trainer)
        parts = of_trainer.collect(trainer, self._order) | {
            EVALUATION_DUE: self._evaluation_due,
            ENDED: trainer.control.should_training_stop and not (self._due.stopping or last),
        }
        if self._job.config.launch.sharded:
            self._frozen_digest()  # now, since all processes take part in it
        if not ranks.leads():
            self._end_of_saving()
            return
        if last:
            parts["optimizer"] = {}  # it is twice as large as the weights, and there is no next step
        losses = [entry[LOSS] for entry in trainer.state.log_history if LOSS in entry and entry["step"] == step]
        self._keeper.save(
            step,
            parts,
            loss=losses[-1] if losses else None,
            more=lambda place: trainer.state.save_to_json(str(place / STATE_FILE)),
            frozen=self._frozen_digest,
            wait=self._due.stopping,
        )
        self._end_of_saving()

    def _end_of_saving(self) -> None:
        self._evaluation_due = False
        if self._due.stopping:  # now: the end of the training would log a part of the next point of the curves
            raise StoppedAfterSavingError

    def postpone_evaluation(self, control: TrainerControl) -> None:
        """After a signal the checkpoint is written at once; an evaluation that is due waits for `resume`."""
        if control.should_save and control.should_evaluate and self._due.stopping:
            self._evaluation_due, control.should_evaluate = True, False

    def _frozen_digest(self) -> str:
        """The digest of the weights that do not train; they stay the same, so it is computed once."""
        self._frozen = self._frozen or of_trainer.frozen_digest(self._trainer)
        return self._frozen

    # --- resuming

    def begin_epoch(self) -> None:
        """Put the order of the rows back, or remember it."""
        if "data" in self._parts:
            self._order.put_back(self._parts["data"]["began"])
        else:
            self._order.begin_epoch()

    def _restore(self, *_: Any) -> None:
        """Put back weights, optimizer and schedule; called by the trainer once it has made them."""
        if self._parts:
            of_trainer.restore(self._trainer, self._parts)

    def _restore_rest(self, *_: Any) -> None:
        """Put back everything else, and compare; called by the trainer right before the next step."""
        if not self._parts or self._comparison is None or self._checkpoint is None:
            return
        parts, self._parts = self._parts, {}
        evaluation_due = parts.pop(EVALUATION_DUE)
        of_trainer.restore_rest(self._trainer, parts)
        restored = of_trainer.collect(self._trainer, self._order)
        for part, saved in parts.items():
            if part == "optimizer" and not saved:  # after the last step
                continue
            if self._processes != ranks.size() and part in ("counters", "callbacks"):
                continue
            self._comparison.compare(part, saved, restored[part])
        if self._processes != ranks.size():
            self._comparison.note("processes", [], before=self._processes, now=ranks.size())
        before, now = folder.facts(self._checkpoint)["frozen_sha256"], self._frozen_digest()
        self._comparison.note("weights that do not train", [] if before == now else ["sha256"], sha256=now)
        if evaluation_due:
            self._evaluate()

    def _evaluate(self) -> None:
        """The evaluation that a signal had put off, and what follows from it: a checkpoint, the end of the training."""
        trainer, comparison = self._trainer, self._comparison
        trainer._evaluate(None, None)
        if trainer.control.should_save and comparison and not comparison.refused:
            self._save()
            trainer.control.should_save = False
        if trainer.control.should_training_stop and not self._finishing:
            raise AlreadyTrainedError

    def _see_first_batch(self) -> None:
        """Compare the first batch that the trainer gets with the one that was to come."""
        draw = self._trainer.get_batch_samples

        def seen(*arguments: Any) -> Any:
            batches, number = draw(*arguments)
            self._trainer.get_batch_samples = draw
            if batches and self._next and self._comparison:
                sha256 = digest(batches[0])
                self._comparison.note("next batch", [] if sha256 == self._next else ["content"], sha256=sha256)
            return batches, number

        self._trainer.get_batch_samples = seen

    def check_first(self) -> None:
        """Before the first resumed step, refuse to continue if anything differs.

        Raises:
            RefusedError: something is not as it was saved.
        """
        if self._comparison is not None and not self._comparison.reported:
            self._comparison.report()


class PlaceCallback(TrainerCallback):
    """Follows the epochs and the first step of a resumable training."""

    def __init__(self, resumable: Resumable) -> None:
        self._resumable = resumable

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps or self._resumable.ended:
            raise AlreadyTrainedError

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.begin_epoch()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.check_first()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.postpone_evaluation(control)
