"""W&B and TensorBoard beside MLflow, by transformers' own callbacks; their failure never fails the run."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from mlflow_ft.errors import FineTuneError, brief
from mlflow_ft.values import Job

PROJECT = "mlflow-ft"
"""The project in W&B, unless WANDB_PROJECT names one."""


def callbacks(job: Job, closing: ExitStack) -> list[TrainerCallback]:
    """A callback for each tracker in `run.also_report_to`; `closing` ends them, however the training ends."""
    trackers: list[TrainerCallback] = []
    for name in job.config.run.also_report_to or ():
        tracker = {"wandb": Wandb, "tensorboard": TensorBoard}[name](job)
        closing.callback(tracker.close)
        trackers.append(tracker)
    return trackers


class Beside(TrainerCallback):
    """Passes the events of the training to another tracker, which is left alone after its first error."""

    name = ""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._inner: Any = None
        self._failed = self._ended = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._try(self._open)
        self._try(lambda: self._inner.on_train_begin(args, state, control, **more))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        more["logs"] = {name: value for name, value in (more.get("logs") or {}).items() if value is not None}
        self._try(lambda: self._inner.on_log(args, state, control, **more))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._try(lambda: self._inner.on_train_end(args, state, control, **more))
        self._ended = True

    def close(self) -> None:
        """Let the tracker write what it has."""
        if self._inner is not None:
            self._failed = False
            self._try(self._close)

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _try(self, call: Any) -> None:
        if self._failed:
            return
        try:
            call()
        except FineTuneError:  # a signal
            raise
        except Exception as error:  # whatever the other tracker raises; MLflow has the values
            self._failed = True
            self._job.progress.warn(
                f"{self.name} receives nothing more of this training: {brief(error, with_type=True)}; MLflow has it all"
            )


class Wandb(Beside):
    """Weights & Biases: a run with the id of the MLflow run, which a resumed training continues."""

    name = "wandb"

    def _open(self) -> None:
        import wandb

        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._job.run.run_id,
            name=os.environ.get("WANDB_NAME") or self._job.config.run.name,
            resume="allow" if self._job.resume else None,
            dir=os.environ.get("WANDB_DIR") or self._job.folder,
            config={"mlflow_run_id": self._job.run.run_id},
            settings=wandb.Settings(console="off", silent=self._job.progress.quiet),
        )
        self._inner = WandbCallback()
        if wandb.run and wandb.run.url:
            self._job.run.set_tags({"mlflow_ft.wandb": wandb.run.url})

    def _close(self) -> None:
        import wandb

        wandb.finish(exit_code=0 if self._ended else 1)


class TensorBoard(Beside):
    """TensorBoard: event files in the run's folder, unless TENSORBOARD_LOGGING_DIR names another."""

    name = "tensorboard"

    def _open(self) -> None:
        self._inner = TensorBoardCallback()
        self._inner.logging_dir = self._inner.logging_dir or str(self._job.folder / "tensorboard")

    def _close(self) -> None:
        if self._inner.tb_writer:
            self._inner.tb_writer.close()
