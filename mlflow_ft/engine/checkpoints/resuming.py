"""A transformers Trainer that writes checkpoints, and continues from one after proving that everything is as it was."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.checkpoints import folder, of_trainer, tree
from mlflow_ft.engine.checkpoints.keeper import DueCallback, Keeper
from mlflow_ft.engine.checkpoints.order import Order, digest
from mlflow_ft.errors import RefusedError
from mlflow_ft.values import Job

STATE_FILE = "trainer_state.json"
"""The file in which transformers keeps step, epoch and the metrics so far."""
LOSS = "eval_loss"
SUMMARY = "train_runtime"
EVALUATION_DUE = "evaluation_due"
SHOWN = 3


class AlreadyTrainedError(Exception):
    """The checkpoint was written after the last step."""


class StoppedAfterSavingError(Exception):
    """A signal arrived, and the checkpoint is on the disk: the training ends here."""


def train(trainer: Any, job: Job) -> tuple[int, float]:
    """Train to the end with checkpoints, from the job's checkpoint if it has one; returns the steps and the mean loss.

    After a signal it returns early: the checkpoint is on the disk, and leaving `deferring_stop` raises.

    Raises:
        RefusedError: something is not as it was saved.
    """
    with Keeper(job) as keeper:
        return Resumable(trainer, job, keeper).train()


class Resumable:
    """Connects a trainer with its checkpoints.

    transformers calls `_save_checkpoint` after log and evaluation of a step, and the three `_load` methods at the
    places where a resumed training needs each part; these are replaced on the trainer.
    """

    def __init__(self, trainer: Any, job: Job, keeper: Keeper) -> None:
        self._trainer, self._job, self._keeper = trainer, job, keeper
        self._order = Order(trainer)
        self._frozen: str = ""
        self._evaluation_due = False
        self._next = ""
        self._parts: dict[str, Any] | None = None
        self._compared: dict[str, Any] = {}
        self._checkpoint = job.resume.checkpoint if job.resume else None
        trainer._save_checkpoint = self._save
        trainer._load_from_checkpoint = lambda *_, **__: None
        trainer._load_scaler = lambda *_, **__: None
        trainer._load_optimizer_and_scheduler = self._restore
        trainer._load_rng_state = self._restore_rest
        trainer.add_callback(DueCallback(job, keeper))
        trainer.add_callback(PlaceCallback(self))

    def train(self) -> tuple[int, float]:
        """See the function `train`."""
        where = None
        if self._checkpoint is not None:
            where = str(self._checkpoint)
            self._parts = folder.read(self._checkpoint)
            self._trainer.args.eval_on_start = False
            self._see_first_batch()
            self._job.progress.say(f"resuming after step {folder.step_of(self._checkpoint)}")
        parts = self._parts
        try:
            result = self._trainer.train(resume_from_checkpoint=where)
        except AlreadyTrainedError:
            return self._without_steps(parts or {})
        except StoppedAfterSavingError:
            return self._trainer.state.global_step, math.nan
        return result.global_step, float(result.training_loss)

    def _without_steps(self, parts: dict[str, Any]) -> tuple[int, float]:
        """Nothing is left to train: the weights are restored, and an evaluation may be due."""
        self._order.put_back(parts["data"]["began"])
        self._restore_rest()
        self._report()
        self._trainer.log({SUMMARY: 0.0})  # as at the end of a training: what was counted since the last log
        steps = self._trainer.state.global_step
        lost = parts["counters"]
        return steps, (lost["_total_loss_scalar"] + float(lost["_tr_loss"])) / max(1, steps)

    # --- writing

    def _save(self, *_: Any) -> None:
        """Write a checkpoint; called by the trainer after log and evaluation of a step."""
        trainer, stopping = self._trainer, self._job.run.stopping
        parts = of_trainer.collect(trainer, self._order) | {EVALUATION_DUE: self._evaluation_due}
        losses = [entry[LOSS] for entry in trainer.state.log_history if LOSS in entry]
        self._keeper.save(
            trainer.state.global_step,
            parts,
            loss=losses[-1] if losses else None,
            more=lambda place: trainer.state.save_to_json(str(place / STATE_FILE)),
            frozen=self._frozen_digest,
            wait=stopping,
        )
        self._evaluation_due = False
        if stopping:  # now: the end of the training would log a part of the next point of the curves
            raise StoppedAfterSavingError

    def postpone_evaluation(self, control: TrainerControl) -> None:
        """When a signal has arrived, the checkpoint is written at once; an evaluation that is due waits for `resume`."""
        if self._job.run.stopping and control.should_evaluate:
            self._evaluation_due, control.should_evaluate = True, False

    def _frozen_digest(self) -> str:
        """sha256 over all weights that do not train; they stay the same, so it is computed once."""
        if not self._frozen:
            total, trained = hashlib.sha256(), of_trainer.weights(self._trainer)
            for name, weight in self._trainer.model.named_parameters():
                if name not in trained:
                    total.update(name.encode())
                    total.update(tree.bits(weight.data).numpy().tobytes())
            self._frozen = total.hexdigest()
        return self._frozen

    # --- resuming

    def begin_epoch(self) -> None:
        """Put the order of the rows back, or remember it."""
        if self._parts is not None:
            self._order.put_back(self._parts["data"]["began"])
        else:
            self._order.begin_epoch()

    def _restore(self, *_: Any) -> None:
        """Weights, optimizer and schedule; called by the trainer once it has made them."""
        if self._parts is not None:
            of_trainer.restore(self._trainer, self._parts)

    def _restore_rest(self, *_: Any) -> None:
        """Everything else, and the comparison with what was saved; called by the trainer right before the next step."""
        if self._parts is None:
            return
        parts, self._parts = self._parts, None
        of_trainer.restore_rest(self._trainer, parts)
        restored = of_trainer.collect(self._trainer, self._order)
        due = parts.pop(EVALUATION_DUE)
        for part, saved in parts.items():
            paths = tree.differences(saved, restored[part])
            self._compared[part] = {"values": sum(1 for _ in tree.leaves(saved)), "different": paths}
        frozen = folder.facts(self._checkpoint)["frozen_sha256"] if self._checkpoint else ""
        different = [] if frozen == self._frozen_digest() else ["weights that do not train"]
        self._compared["frozen"] = {"values": 1, "different": different}
        self._next = parts["data"]["next"]
        if due:
            self._trainer._evaluate(None, None)

    def _see_first_batch(self) -> None:
        """Compute the digest of the first batch that the trainer gets, to compare it with the one that was to come."""
        draw = self._trainer.get_batch_samples

        def seen(*arguments: Any) -> Any:
            batches, number = draw(*arguments)
            self._trainer.get_batch_samples = draw
            if batches:
                self._compared["next batch"] = {"values": 1, "different": [], "sha256": digest(batches[0])}
            return batches, number

        self._trainer.get_batch_samples = seen

    def check_first(self) -> None:
        """Before the first resumed step: refuse to continue if anything differs.

        Raises:
            RefusedError: something is not as it was saved.
        """
        if self._checkpoint is None or "reported" in self._compared:
            return
        batch = self._compared.get("next batch")
        if batch is not None and self._next and batch["sha256"] != self._next:
            batch["different"] = ["content"]
        self._report()

    def _report(self) -> None:
        """Keep the comparison on the run, and refuse if something differs."""
        if self._checkpoint is None or self._job.resume is None:
            return
        step = folder.step_of(self._checkpoint)
        differing = {part: result["different"] for part, result in self._compared.items() if result["different"]}
        content = {"step": step, "equal": not differing, "parts": dict(self._compared)}
        self._job.run.artifact_text(json.dumps(content, indent=2), f"resume/{folder.name(step)}.json")
        self._compared["reported"] = {"different": []}
        if not differing:
            self._job.progress.say("everything restored equals what was saved")
            return
        names = "; ".join(f"{part} ({', '.join(paths[:SHOWN])})" for part, paths in differing.items())
        if self._job.resume.accept_changes:
            self._job.progress.warn(f"restored with differences that you accepted: {names}")
            return
        raise RefusedError(
            f"what was restored differs from the checkpoint of step {step}: {names}",
            hint="resume on a machine and with versions as before, or accept the difference with --accept-changes",
        )


class PlaceCallback(TrainerCallback):
    """Follows the epochs and the first step of a resumable training."""

    def __init__(self, resumable: Resumable) -> None:
        self._resumable = resumable

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            raise AlreadyTrainedError

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.begin_epoch()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.check_first()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._resumable.postpone_evaluation(control)
