"""The interface of a job for the engine and plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_ft.progress import Progress
from mlflow_ft.rows import Task
from mlflow_ft.values.data import Split
from mlflow_ft.values.models import Checkpointer, LossWatcher

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How a job that was interrupted continues."""

    checkpoint: Path | None
    """The verified checkpoint to continue from; None: training starts again."""
    accept_changes: bool = False
    """Continue even if something differs from what was recorded or saved."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """The tags of the run when it was interrupted."""

    @property
    def step(self) -> int:
        """The optimizer step after which the training continues; 0: from the start."""
        return int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0


class Run(Protocol):
    """The MLflow run of a job. Everything is first written to a journal on disk: an outage loses nothing."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT was received; a training loop checks it between two steps."""

    def deferring_stop(self) -> AbstractContextManager[None]:
        """Inside, the first signal only sets `stopping`; on exit, `StoppedError` is raised if it is set."""

    def metric(self, key: str, value: float, *, step: int = 0, dataset: Split | None = None) -> None:
        """Log one value of a metric; `dataset` links it to the rows that it was computed on."""

    def params(self, values: Mapping[str, float]) -> None:
        """Log numbers that do not change while a run goes on, such as counts of rows, as params."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Log rows as a table that MLflow's UI shows; `path` ends in `.json`."""

    def artifact(self, file: Path, folder: str = "") -> None:
        """Log a file."""

    def artifact_text(self, text: str, path: str) -> None:
        """Log a text as a file."""

    def upload_checkpoint(self, folder: Path, *, beside: Path | None = None) -> None:
        """Upload a checkpoint, so that the run can be resumed on another machine; others are removed but `beside`.

        Called in a thread. An error is a warning.
        """


class Job(Protocol):
    """One fine-tuning job, which is one MLflow run: its configuration and what the stages need to run it."""

    @property
    def config(self) -> Config:
        """Every setting, frozen: `job.config.training.learning_rate`."""

    @property
    def run(self) -> Run:
        """The MLflow run."""

    @property
    def folder(self) -> Path:
        """The run's own folder; each stage from `train` on has a sub-folder in it."""

    @property
    def progress(self) -> Progress:
        """Output to the terminal: `say`, `warn`, `bar`."""

    @property
    def registry(self) -> Any:
        """The records of all plugins by kind and name: `registry.adapters["lora"]`."""

    @property
    def plugins(self) -> Any:
        """The loaded plugins, a `mlflow_ft.plugins.Plugins`."""

    @property
    def task(self) -> Task:
        """What the method trains a model for: to generate text, or to score it."""

    @property
    def reward_model(self) -> Path | None:
        """The folder of `rollout.reward_model`."""

    @property
    def keep_checkpoint(self) -> Checkpointer | None:
        """Called at every evaluation during training if `training.log_checkpoints` is set."""

    @property
    def watch_loss(self) -> LossWatcher | None:
        """Called with every held-out loss during training, in a trial of a sweep; it may end the training."""

    @property
    def resume(self) -> Resume | None:
        """Set if an interrupted training continues."""
