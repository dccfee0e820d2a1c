"""One fine-tuning job: the argument of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.plugins import Plugins
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry
    from mlflow_ft.rows import Task
    from mlflow_ft.tracking import ActiveRun
    from mlflow_ft.values import Checkpointer, LossWatcher, Resume


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fine-tuning job, which is one MLflow run: its configuration and what the stages need to run it."""

    config: Config
    plugins: Plugins
    registry: Registry
    run: ActiveRun
    folder: Path
    """The run's own folder; each stage from `train` on has a sub-folder in it."""
    progress: Progress
    reward_model: Path | None = None
    """The folder of `rollout.reward_model`."""
    keep_checkpoint: Checkpointer | None = None
    """Called at every evaluation during training if `training.log_checkpoints` is set."""

    watch_loss: LossWatcher | None = None
    """Called with every held-out loss during training, in a trial of a sweep."""
    resume: Resume | None = None
    """Set if an interrupted training continues."""

    @property
    def task(self) -> Task:
        """What the method trains a model for."""
        return self.registry.trainers[self.config.method].task
