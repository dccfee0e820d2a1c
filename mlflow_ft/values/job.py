"""A job as the engine and plugins see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_ft.progress import Progress
from mlflow_ft.rows import Task
from mlflow_ft.values.data import Split
from mlflow_ft.values.models import Checkpointer

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config


class Run(Protocol):
    """The MLflow run of a job. What is logged goes into a journal on disk first: an outage loses nothing."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT was received; a training loop looks at it between two steps."""

    def deferring_stop(self) -> AbstractContextManager[None]:
        """Inside, the first signal only sets `stopping`; leaving raises `StoppedError` where it is set."""

    def metric(self, key: str, value: float, *, step: int = 0, dataset: Split | None = None) -> None:
        """Log one value of a metric; `dataset` links it to the rows that it was computed on."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Log rows as a table that MLflow's UI shows; `path` ends in `.json`."""

    def artifact(self, file: Path, folder: str = "") -> None:
        """Log a file."""

    def artifact_text(self, text: str, path: str) -> None:
        """Log a text as a file."""


class Job(Protocol):
    """One fine-tuning job, which is one MLflow run: what was asked, and the means to do it."""

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
        """What people read in the terminal: `say`, `warn`, `bar`."""

    @property
    def registry(self) -> Any:
        """Every record of every plugin by kind and name, `registry.adapters["lora"]`."""

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
        """Called at every evaluation during training, where checkpoints were asked for."""
