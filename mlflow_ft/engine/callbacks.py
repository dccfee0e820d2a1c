"""What happens beside the training steps: the journal, the progress bar, the checks on loss and signals."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.errors import RefusedError
from mlflow_ft.job import Job, Split
from mlflow_ft.progress import Bar

NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "mean_token_accuracy": "train/mean_token_accuracy",
    "eval_loss": "eval/loss",
}
"""The trainer's names and ours; what the trainer logs beyond these is kept as `train/<its name>`."""
SKIPPED = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


class JournalCallback(TrainerCallback):
    """Writes every point of the training curves to the run's journal, which no outage of the server can block."""

    def __init__(self, job: Job, held_out: Split) -> None:
        self._job = job
        self._held_out = held_out
        self._since = time.monotonic()
        self._tokens = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if name not in SKIPPED}
        tokens = values.pop("num_tokens", None)
        for name, value in values.items():
            key = NAMES.get(name, f"train/{name}")
            self._job.run.metric(
                key, value, step=state.global_step, dataset=self._held_out if key.startswith("eval/") else None
            )
        if tokens is not None:
            now = time.monotonic()
            self._job.run.metric("train/tokens_seen", tokens, step=state.global_step)
            if tokens > self._tokens and now > self._since:
                rate = (tokens - self._tokens) / (now - self._since)
                self._job.run.metric("train/tokens_per_second", rate, step=state.global_step)
            self._tokens, self._since = tokens, now


class WatchCallback(TrainerCallback):
    """Refuses a loss that is no number, stops at the end of a step when a signal came, and moves the bar."""

    def __init__(self, job: Job, bar: Bar) -> None:
        self._job = job
        self._bar = bar
        self._note = ""

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
        if "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.advance(1, note=self._note)
        if self._job.run.stopping:
            control.should_training_stop = True
