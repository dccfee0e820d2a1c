"""What the held-out loss decides during training: its end, the weights that are kept, a warning of overfitting."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine import ranks
from mlflow_ft.engine.checkpoints import best, folder, keeper
from mlflow_ft.engine.training.callbacks import HELD_OUT
from mlflow_ft.values import Chosen, Job, Trained

CHANGE = 0.01
"""A loss has risen or fallen if it differs by more than this share; less may be chance."""
CONFIRMED = 2
"""Evaluations in a row, none of them below the lowest held-out loss, after which a rise is no chance."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """An evaluation during training."""

    step: int
    loss: float
    """On the held-out rows."""
    trained: float | None
    """The mean training loss since the evaluation before; None if none was logged since."""


class Course:
    """The held-out loss so far: its lowest value, the evaluations since then, and whether the model overfits.

    >>> course = Course()
    >>> for step, loss in ((10, 2.0), (20, 1.5), (30, 1.7), (40, 1.9)):
    ...     course.trained(5.0 - step / 10)
    ...     course.evaluated(step, loss)
    >>> course.best.step, course.since
    (20, 2)
    >>> course.overfitting
    'the held-out loss rose after step 20 (1.5 -> 1.9 at step 40) while the training loss fell (3 -> 1)'
    """

    def __init__(self) -> None:
        self.best: Point | None = None
        self.since = 0
        """Evaluations since the lowest loss: none of them was below it."""
        self.overfitting = ""
        """When the held-out loss first rose while the training loss fell, a sentence; "" if it never did.

        The rise and its confirmation are the criteria GL and UP of Prechelt, "Early Stopping - But When?" (1998)."""
        self._logged: list[float] = []

    def trained(self, loss: float) -> None:
        """The training loss was logged."""
        self._logged.append(loss)

    def evaluated(self, step: int, loss: float, *, last: bool = False) -> None:
        """The held-out loss was measured after a step; after the `last` one no other can confirm a rise."""
        point = Point(step=step, loss=loss, trained=fmean(self._logged) if self._logged else None)
        self._logged.clear()
        if self.best is None or loss < self.best.loss:
            self.best, self.since = point, 0
            return
        self.since += 1
        if not self.overfitting and (self.since >= CONFIRMED or last) and _overfits(self.best, point):
            self.overfitting = (
                f"the held-out loss rose after step {self.best.step:,} ({self.best.loss:.4g} -> {loss:.4g} at step "
                f"{step:,}) while the training loss fell ({self.best.trained:.4g} -> {point.trained:.4g})"
            )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "best": asdict(self.best) if self.best else None,
            "since": self.since,
            "overfitting": self.overfitting,
            "logged": list(self._logged),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best = Point(**state["best"]) if state["best"] else None
        self.since, self.overfitting = state["since"], state["overfitting"]
        self._logged = list(state["logged"])


def _overfits(best: Point, now: Point) -> bool:
    """Whether the held-out loss has risen while the training loss fell."""
    if best.trained is None or now.trained is None:
        return False
    rose, fell = now.loss - best.loss, best.trained - now.trained
    return rose > CHANGE * abs(best.loss) and fell > CHANGE * abs(best.trained)


class HeldOutCallback(TrainerCallback):
    """Ends the training, asks for checkpoints and warns, by the held-out loss as rank 0 measured it.

    It counts as transformers' EarlyStoppingCallback does (threshold 0, and the loss before the first step does not
    count), which cannot be used itself: it needs load_best_model_at_end, which reads transformers' own checkpoints; the
    trainer tells it the lowest loss, but not after an evaluation that `resume` makes up for; and each process would
    decide for itself.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._settings = job.config.training
        self.course = Course()
        self.stopped = ""
        """Why the training ended before its last step."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the course of the loss so far, and whether the training ended here."""
        return {"course": self.course.state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.course.load_state_dict(state["course"])
        self.stopped = state["stopped"]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.course.trained(float(logs["loss"]))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = ranks.gather((metrics or {}).get(f"{HELD_OUT}loss"))[0]
        if loss is None or not math.isfinite(loss) or not state.global_step:
            return
        warned = self.course.overfitting
        self.course.evaluated(state.global_step, loss, last=state.global_step >= state.max_steps)
        if self.course.overfitting and not warned:
            self._warn()
        if self._settings.loads_best and self.course.since == 0:
            control.should_save = True
        patience = self._settings.early_stopping
        if patience and self.course.since >= patience and state.global_step < state.max_steps:
            self._stop(state, loss)
            control.should_training_stop = control.should_save = True

    def _stop(self, state: TrainerState, loss: float) -> None:
        best, times = self.course.best, self.course.since
        self.stopped = (
            f"at step {state.global_step:,} of {state.max_steps:,}: {times} held-out "
            f"{'loss' if times == 1 else 'losses'} in a row not below the lowest one"
            + (f" ({best.loss:.4g} at step {best.step:,}; now {loss:.4g})" if best else "")
        )
        self._job.progress.say(f"the training ends early, {self.stopped}")

    def _warn(self) -> None:
        settings = self._settings
        best = "the best checkpoint is kept; " if settings.loads_best else ""
        remedies = [
            *([] if settings.loads_best else ["keep the best checkpoint (--training.load_best true)"]),
            *([] if settings.early_stopping else ["end the training early (--training.early_stopping 3)"]),
            "train fewer epochs (--training.num_train_epochs)",
        ]
        self._job.progress.warn(f"{self.course.overfitting}: the model overfits; {best}{', or '.join(remedies)}")


def callback(job: Job) -> HeldOutCallback | None:
    """The callback of a method that measures a held-out loss; None for others."""
    return HeldOutCallback(job) if job.registry.trainers[job.config.method].held_out_loss else None


# --- after the training


@dataclass(frozen=True, kw_only=True)
class Best:
    """The checkpoint that is kept."""

    chosen: Chosen | None
    """None in other processes than rank 0, and if no checkpoint was left: the weights after the last step are kept."""
    parts: dict[str, Any] | None
    """Of the checkpoint, in rank 0, and empty in the others; None if the weights in memory are those."""
    lost: str = ""
    """That the one with the lowest loss is lost, a sentence; "" if it is not."""


def choose(job: Job, watch: HeldOutCallback, steps: int) -> Best | None:
    """The checkpoint with the lowest held-out loss, if `training.load_best` asks for it.

    Rank 0, which has the disk, chooses; every process must call it. If the checkpoint is lost (a full disk), the lowest
    of those that are left is chosen, with a warning.

    Args:
        job: the job, whose training has ended.
        watch: the callback that saw every held-out loss.
        steps: optimizer steps of the training.
    """
    lowest = watch.course.best
    if lowest is None or not job.config.training.loads_best:
        return None
    found = _on_disk(job, lowest, steps) if ranks.leads() else None
    changes = ranks.gather(found is not None and found.parts is not None)[0]
    return found or Best(chosen=None, parts={} if changes else None)


def _on_disk(job: Job, lowest: Point, steps: int) -> Best:
    """The best checkpoint that is there."""
    if lowest.step == steps:
        return Best(chosen=Chosen(step=steps, loss=lowest.loss, steps=steps), parts=None)
    found = best.sound(keeper.place(job), until=steps, say=job.progress.warn)
    lost = "" if found and found.step == lowest.step else _lost(lowest, found)
    if lost:
        job.progress.warn(lost)
    if found is None:
        return Best(chosen=None, parts=None, lost=lost)
    chosen, earlier = Chosen(step=found.step, loss=found.loss, steps=steps), found.step < steps
    if earlier:
        job.progress.say(f"the trained model is the checkpoint of {chosen}")
    return Best(chosen=chosen, parts=folder.read(found.folder, optimizer=False) if earlier else None, lost=lost)


def _lost(lowest: Point, found: best.Measured | None) -> str:
    kept = (
        f"the checkpoint of step {found.step:,} ({found.loss:.4g}) was kept instead"
        if found
        else "no other was left, so that the weights after the last step were kept"
    )
    return (
        f"the checkpoint of step {lowest.step:,}, which had the lowest held-out loss ({lowest.loss:.4g}), was lost; "
        f"{kept}"
    )


def concluded(trained: Trained, watch: HeldOutCallback, best: Best | None) -> Trained:
    """The result of a training, with what the held-out loss decided and found."""
    chosen = best.chosen if best else None
    metrics = {"train/chosen_step": float(chosen.step), "train/chosen_loss": chosen.loss} if chosen else {}
    findings = [
        *([f"{watch.course.overfitting}{_kept(chosen)}"] if watch.course.overfitting else []),
        *([best.lost] if best and best.lost else []),
    ]
    return replace(
        trained,
        metrics={**trained.metrics, **metrics},
        findings=(*trained.findings, *findings),
        stopped=watch.stopped,
        chosen=chosen,
    )


def _kept(chosen: Chosen | None) -> str:
    return f"; the weights of step {chosen.step:,} were kept" if chosen and chosen.step < chosen.steps else ""
