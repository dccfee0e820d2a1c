"""A callback for transformers, in a separate module because it imports transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from mlflow_ft import Job


class CountSteps(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for it
    """Logs the number of completed steps as the plugin's own metric."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._job.run.metric("template/steps", state.global_step, step=state.global_step)
