"""The events of a trainer in another process, as calls of our callbacks: curves, progress, the checks, plugins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.tools.process import Event
from mlflow_ft.engine.training import loop
from mlflow_ft.values import Data, Job, Model

NOT_IN_NAMES = re.compile(r"[^\w./ :-]+")
"""What MLflow does not take in the name of a metric."""


class Mirror:
    """What is known of the training in the other process."""

    def __init__(self, job: Job, data: Data, model: Model, *, args: TrainingArguments, bars: ExitStack) -> None:
        self._args = args
        self.state = TrainerState()
        self.mean_loss = math.nan
        self._control = TrainerControl()
        callbacks = loop.reporting(job, data, bars)
        for more in job.plugins.hook.training_callbacks(job=job):
            callbacks.extend(more)
        self._callbacks = callbacks
        self._known = {"model": model.module, "processing_class": data.tokenizer}

    @property
    def stopping(self) -> bool:
        """Whether a callback has ended the training."""
        return bool(self._control.should_training_stop)

    def see(self, event: Event) -> None:
        """Call what listens to an event.

        Raises:
            RefusedError: a NaN or infinite loss.
        """
        self.state.global_step = event["step"]
        if event.get("epoch") is not None:
            self.state.epoch = event["epoch"]
        getattr(self, f"_{event['event']}")(event)

    def _begin(self, event: Event) -> None:
        self.state.max_steps = event["max_steps"]
        self._call("on_train_begin")

    def _step_begin(self, event: Event) -> None:
        self._call("on_step_begin")

    def _step_end(self, event: Event) -> None:
        self._call("on_step_end")

    def _log(self, event: Event) -> None:
        values = _named(event["values"])
        self.mean_loss = values.get("train_loss", self.mean_loss)
        self._call("on_log", logs=values)

    def _evaluate(self, event: Event) -> None:
        self._call("on_evaluate", metrics=_named(event["values"]))

    def _end(self, event: Event) -> None:
        self._call("on_train_end")

    def _call(self, name: str, **more: Any) -> None:
        for callback in self._callbacks:
            answer = getattr(callback, name)(self._args, self.state, self._control, **self._known, **more)
            self._control = answer or self._control


def _named(values: Mapping[str, float]) -> dict[str, float]:
    """With names that MLflow takes: `memory/max_active (GiB)` becomes `memory/max_active GiB`."""
    return {NOT_IN_NAMES.sub("", name): value for name, value in values.items()}
