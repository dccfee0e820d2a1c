"""Callbacks of every training: the journal, the progress bar, the checks on loss and signals."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import ExitStack
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.hardware import in_use
from mlflow_ft.errors import RefusedError
from mlflow_ft.progress import LATEST, TrainingBar, duration
from mlflow_ft.values import Job, LossWatcher, Split

HELD_OUT = "eval_"
"""Prefix of the trainers' names for metrics on held-out rows."""
SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
SKIPPED = {"train_loss", "total_flos"} | {f"{side}_{name}" for side in ("train", "eval") for name in SPEED}

DRAWN = {"loss": "loss", f"{HELD_OUT}loss": "held-out loss"}
"""The trainers' names of the curves on the terminal, and theirs there."""
WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that have no warm-up."""
MEASURED = 5
"""Steps after which the time of the others is announced."""


def curve(name: str) -> str:
    """The name of a training curve: `train/<the trainer's name>`, or `eval/<name>` for held-out rows."""
    return f"eval/{name.removeprefix(HELD_OUT)}" if name.startswith(HELD_OUT) else f"train/{name}"


class JournalCallback(TrainerCallback):
    """Writes every point of the training curves to the run's journal, which works even if the server is down."""

    def __init__(self, job: Job, held_out: Split) -> None:
        self._job = job
        self._held_out = held_out
        self._speed = Speed()

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint: the tokens that were logged so far."""
        return {"tokens": self._speed.tokens}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self._speed.tokens = state["tokens"]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._speed.begin()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        # TRL writes None for a reward that is None for every answer
        values = {name: value for name, value in (logs or {}).items() if name not in SKIPPED and value is not None}
        if "loss" not in values:  # an evaluation, or the summary at the end: the step's point has the epoch already
            values.pop("epoch", None)
        tokens = values.pop("num_tokens", None)
        values.pop(f"{HELD_OUT}num_tokens", None)
        for name, value in values.items():
            key = curve(name)
            self._job.run.metric(
                key, value, step=state.global_step, dataset=self._held_out if key.startswith("eval/") else None
            )
        if tokens is not None:
            self._job.run.metric("train/tokens_seen", tokens, step=state.global_step)
            if rate := self._speed.rate(tokens):
                self._job.run.metric("train/tokens_per_second", rate, step=state.global_step)


class WatchCallback(TrainerCallback):
    """Stops at a NaN or infinite loss; updates the progress bar."""

    def __init__(self, job: Job, bars: ExitStack) -> None:
        self._job = job
        self._bars = bars
        self._bar: TrainingBar | None = None
        self._pace = Pace()
        self._speed = Speed()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        settings = self._job.config.training
        if settings.warmup_steps >= max(1, state.max_steps) and settings.lr_scheduler_type not in WITHOUT_WARM_UP:
            self._job.progress.warn(
                f"training.warmup_steps {settings.warmup_steps:g}: this training has {state.max_steps:,} steps, so the "
                f"learning rate does not reach {settings.learning_rate:g}; give a share of all steps, such as 0.03"
            )
        self._bar = self._bars.enter_context(self._job.progress.training("train", total=state.max_steps))
        if state.global_step:
            self._bar.advance(state.global_step)
        self._speed.begin()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        for name in ("loss", "grad_norm", "eval_loss"):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):
                raise RefusedError(
                    f"training stopped: {name} is {value} at step {state.global_step}",
                    hint=f"lower training.learning_rate (it is {self._job.config.training.learning_rate:g}), "
                    "warm up longer, or compute in float32 (--model.dtype float32)",
                )
        self._show(logs, state.global_step)

    def _show(self, logs: dict[str, float], step: int) -> None:
        """Draw losses, speed and memory."""
        if self._bar is None:
            return
        for name, shown in DRAWN.items():
            if name in logs:
                self._bar.point(shown, logs[name], step=step)
        if tokens := logs.get("num_tokens"):
            before, rate = self._speed.tokens, self._speed.rate(tokens)
            # the first steps are slower, and a resumed training begins with its checkpoint's tokens
            if before and rate:
                self._bar.fact("speed", f"{rate:,.0f} tokens/s")
        self._bar.fact("memory", f"{in_use() / 2**30:.1f} GiB")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace.end()
        if self._bar:
            if self._pace.seconds:
                self._bar.fact("pace", f"{self._pace.seconds:.2g} s/step")
            self._bar.advance(1)
        if self._pace.is_known_now and (left := state.max_steps - state.global_step) > 0:
            total = duration(self._pace.seconds * left)
            self._job.progress.say(f"{self._pace.seconds:.2g} s a step: {total} for the other {left:,}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._pace.seconds:
            self._job.run.metric("train/step_time", self._pace.seconds, step=state.global_step)


class Speed:
    """Tokens a second between two logs."""

    def __init__(self) -> None:
        self.tokens = 0.0
        """Those of the last log."""
        self._since = time.monotonic()

    def begin(self) -> None:
        """The training begins, or goes on."""
        self._since = time.monotonic()

    def rate(self, tokens: float) -> float:
        """Since the last log, at which there were fewer tokens; 0 if no time has passed, or none were added."""
        now, more = time.monotonic(), tokens - self.tokens
        rate = more / (now - self._since) if more > 0 and now > self._since else 0.0
        self.tokens, self._since = tokens, now
        return rate


class Pace:
    """The time that a step takes, without evaluations and checkpoints: the median of the latest steps.

    The first step is left out: it also starts kernels and threads.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._count = 0
        self._latest: deque[float] = deque(maxlen=LATEST)

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It has ended."""
        if self._began is not None and self._count:
            self._latest.append(time.monotonic() - self._began)
        self._count += 1

    @property
    def seconds(self) -> float:
        """0 if no step was measured."""
        return median(self._latest) if self._latest else 0.0

    @property
    def is_known_now(self) -> bool:
        """Whether just enough steps were measured to announce the time."""
        return self._count == MEASURED + 1


class HeldOutLossCallback(TrainerCallback):
    """Passes each held-out loss during training to `watch`, which may end the training by an error."""

    def __init__(self, watch: LossWatcher) -> None:
        self._watch = watch

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (metrics or {}).get(f"{HELD_OUT}loss")
        if loss is not None and 0 < state.global_step < state.max_steps:  # otherwise there is nothing to save
            self._watch(state.global_step / state.max_steps, loss)
