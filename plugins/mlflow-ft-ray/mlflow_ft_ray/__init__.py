"""Ray: the processes of a training on a cluster, started again from the last checkpoint when a machine is lost.

mlflow-ft train lora --model MODEL --data rows.jsonl --launch.launcher ray --launch.num_processes 8
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from mlflow_ft import Launcher, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Config, Launch


def launch(launch: Launch) -> str:
    """Start the processes as workers of Ray Train."""
    from mlflow_ft_ray.engine import launching

    return launching.launch(launch)


def refused(config: Config) -> str | None:
    """Why the processes cannot be started: Ray is not installed, no cluster answers, or it is too small."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'ray[train,tune]'"
    from mlflow_ft_ray.engine import launching

    return launching.refused(config)


@hookimpl
def register_launchers() -> list[Launcher]:
    return [
        Launcher(
            name="ray",
            summary="workers of Ray Train on a Ray cluster; a lost machine restarts them from the last checkpoint",
            launch=launch,
            refuses=refused,
        )
    ]
