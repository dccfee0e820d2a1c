"""The connection to a Ray cluster: the one in RAY_ADDRESS, else the one that was started on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlflow_ft import ConfigError, brief

ANSWER_SECONDS = 10.0
INSIDE = "MLFLOW_FT_RAY_WORKER"
"""Set in the processes of a training that runs on the cluster."""
NO_CLUSTER = "no Ray cluster answers"
HOW = "start one (`ray start --head` here, `ray start --address HOST:6379` on the others), or set RAY_ADDRESS"
FORWARDED = ("MLFLOW_", "HF_", "HUGGING_FACE_", "WANDB_", "AWS_", "AZURE_", "GOOGLE_", "NCCL_", "OMP_", "PYTHON")
"""Prefixes of the environment variables that the processes on the cluster get from the process that starts them."""
OF_JOB = ("HF_", "OMP_", "PYTHON")
"""Prefixes of those that tasks get too, which are not secret: Ray shows them on its dashboard."""
OF_THIS_MACHINE = ("MLFLOW_FT_CHAIN_PID", "PYTHONHOME")
"""Variables that mean nothing on another machine."""


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster; a connection that is already there is used and kept.

    Raises:
        ConfigError: no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        answers(address := os.environ.get("RAY_ADDRESS") or on_this_machine())
        ray.init(address=address, logging_level="warning", runtime_env={"env_vars": of_job()})
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{NO_CLUSTER}: {brief(error)}", hint=HOW) from error
    try:
        yield
    finally:
        ray.shutdown()


def on_this_machine() -> str:
    """The address of the cluster that was started here, which Ray remembers even when the cluster has ended.

    Raises:
        ConnectionError: none was.
    """
    services.find_gcs_addresses.cache_clear()
    return str(services.canonicalize_bootstrap_address_or_die("auto"))


def answers(address: str) -> None:
    """Raise OSError if nothing answers at an address: Ray would wait for minutes, or end this process."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS):
            pass


def unreachable() -> str | None:
    """Why no cluster can be reached, and a remedy; None if one answers."""
    try:
        with connected():
            return None
    except ConfigError as error:
        return f"{error.message}; {error.hint}"


def alive() -> list[Mapping[str, Any]]:
    """The machines of the cluster."""
    return [node for node in ray.nodes() if node["Alive"]]


def blind(files: Sequence[Path]) -> list[str]:
    """The addresses of the machines that do not see all of these files, which are on this machine."""
    look, nodes = ray.remote(_sees), alive()
    placed = [NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False) for node in nodes]
    there = [look.options(num_cpus=0, scheduling_strategy=place) for place in placed]
    seen = ray.get([function.remote([str(file) for file in files]) for function in there])
    return [node["NodeManagerAddress"] for node, sees in zip(nodes, seen, strict=True) if not sees]


def _sees(files: Sequence[str]) -> bool:
    return all(Path(file).is_file() for file in files)


def of_job() -> dict[str, str]:
    """The variables of every process that works for this one: the same for all, because Ray starts new ones else."""
    return forwarded(*OF_JOB) | {"TOKENIZERS_PARALLELISM": "false"}


def forwarded(*prefixes: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of this process that decide a run, or those with other prefixes."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(prefixes or FORWARDED) and name not in OF_THIS_MACHINE
    }
