"""Ray: trainings and sweeps on a cluster, started again from the last checkpoint when a machine is lost; data checks.

mlflow-ft train lora --model MODEL --data rows.jsonl --launch.launcher ray --launch.num_processes 8
mlflow-ft sweep lora --model MODEL --data rows.jsonl --launch.launcher ray --gpus-per-trial 0.5
mlflow-ft prepare --model MODEL --data rows.jsonl --data.engine ray
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mlflow_ft import ConfigError, Engine, Launcher, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Config, Launch, Machines, Places, Trials

NOT_INSTALLED = "Ray is not installed: pip install 'ray[data,train,tune]'"


def launch(launch: Launch) -> str:
    """Start the processes as workers of Ray Train."""
    from mlflow_ft_ray.engine import launching

    return launching.launch(launch)


def refused(config: Config) -> str | None:
    """Why the processes cannot be started: Ray is not installed, no cluster answers, or it is too small."""
    if importlib.util.find_spec("ray") is None:
        return NOT_INSTALLED
    from mlflow_ft_ray.engine import launching

    return launching.refused(config)


def trials(asked: Trials) -> AbstractContextManager[Places]:
    """The trials of a sweep as trials of Ray Tune."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"launch.launcher ray: {NOT_INSTALLED}")
    from mlflow_ft_ray.engine import tuning

    return tuning.trials(asked)


def machines() -> AbstractContextManager[Machines]:
    """The machines of the cluster, for data."""
    from mlflow_ft_ray.engine import rows

    return rows.machines()


def no_cluster() -> str | None:
    """Why the cluster cannot be used."""
    if importlib.util.find_spec("ray") is None:
        return NOT_INSTALLED
    from mlflow_ft_ray.engine import cluster

    return cluster.unreachable()


@hookimpl
def register_engines() -> list[Engine]:
    return [
        Engine(
            name="ray",
            summary="the machines of a Ray cluster; the same findings as on one machine",
            machines=machines,
            refuses=no_cluster,
        )
    ]


@hookimpl
def register_launchers() -> list[Launcher]:
    return [
        Launcher(
            name="ray",
            summary="Ray cluster: workers of Ray Train, sweeps as trials of Ray Tune; restarted when a machine is lost",
            launch=launch,
            refuses=refused,
            trials=trials,
        )
    ]
