"""The data engine `ray`: functions as tasks of a Ray cluster, values in its object store, which spills to disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from mlflow_ft import Handle, Machines
from mlflow_ft_ray.engine import cluster

OF_TASKS = ("HF_", "OMP_", "PYTHON")
"""Prefixes of the variables that tasks get; Ray starts new processes for tasks with others."""


class Tasks:
    """Machines (`mlflow_ft.Machines`) that are those of a Ray cluster. Tasks of a lost machine are run again."""

    def __init__(self) -> None:
        environ = cluster.forwarded(*OF_TASKS) | {"TOKENIZERS_PARALLELISM": "false"}
        cpus = 0 if cluster.INSIDE in os.environ else 1  # the workers of a training have taken the CPUs
        self._call = ray.remote(_call).options(num_cpus=cpus, runtime_env={"env_vars": environ})

    @property
    def size(self) -> int:
        """The CPUs of the cluster."""
        return int(ray.cluster_resources().get("CPU", 1))

    def put(self, value: Any) -> Handle:
        """Put a value into the object store."""
        return ray.put(value)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """Start a task."""
        return self._call.remote(function, *arguments)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Bring values here; an error of a task is raised as it was there."""
        try:
            values: list[Any] = ray.get(list(handles))
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        return values


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@contextmanager
def machines() -> Iterator[Machines]:
    """The machines of the cluster, as long as the connection lasts.

    Raises:
        ConfigError: no cluster answers.
    """
    with cluster.connected():
        yield Tasks()
