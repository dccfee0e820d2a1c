"""The launcher `ray`: workers of Ray Train's TorchTrainer, restarted together when one of them is lost."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from mlflow_ft import ConfigError, ProcessError, StoppedError
from mlflow_ft.engine.launching.starting import passing_signals
from mlflow_ft_ray.engine import board, cluster, worker

if TYPE_CHECKING:
    from mlflow_ft import Config, Launch, LaunchSection

LOOK_SECONDS = 0.5


def launch(launch: Launch) -> str:
    """Start the workers, restart them after a loss, and return the result of rank 0.

    Raises:
        ConfigError: no cluster answers. ProcessError: the workers were lost once more than `launch.max_restarts`.
        StoppedError: a signal arrived, and they ended without a result.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with cluster.connected(), tempfile.TemporaryDirectory(prefix="mlflow-ft-ray-") as storage:
        wall = board.put_up()
        asked = {"request": launch.request, "folder": str(Path.cwd()), "environ": cluster.forwarded(), "board": wall}
        with passing_signals(wall.stop.remote) as received:
            outcome = fitted(trainer(launch, asked, storage))
    if isinstance(outcome, str) and outcome:
        return outcome
    if received:
        raise StoppedError(received[0])
    if isinstance(outcome, BaseException):
        raise ProcessError(
            f"the workers were lost more than {launch.settings.max_restarts} times: {said(outcome)}",
            hint="the last lines above say more; a run that was interrupted is listed by `mlflow-ft runs`, and "
            "continued by `mlflow-ft resume RUN_ID`",
        ) from outcome
    raise ProcessError("the workers ended without a result", hint="the last lines above say more")


def trainer(launch: Launch, asked: dict[str, Any], storage: str) -> Any:
    """The trainer of Ray Train with the settings of `launch`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings, gpus = launch.settings, int(ray.cluster_resources().get("GPU", 0))
    scaling = ScalingConfig(
        num_workers=settings.num_processes or gpus,
        use_gpu=gpus > 0,
        placement_strategy="SPREAD" if settings.num_machines > 1 else "PACK",
    )
    return TorchTrainer(
        worker.work,
        train_loop_config=asked,
        scaling_config=scaling,
        run_config=RunConfig(
            name="mlflow-ft", storage_path=storage, failure_config=FailureConfig(max_failures=settings.max_restarts)
        ),
        torch_config=TorchConfig(backend="gloo"),  # the workers exchange a port only; their processes have the GPUs
    )


def fitted(trainer: Any) -> Any:
    """What the trainer's rank 0 returned, or the error of the workers.

    It runs in a thread: in the main one Ray would replace the handler of SIGINT by one that ends the workers at once.
    """
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit().return_value)
        except Exception as error:  # Ray's own, and whatever a worker raised
            outcome.append(error)

    thread = threading.Thread(target=fit, name="mlflow-ft-ray", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
    return outcome[0] if outcome else None


def said(error: BaseException) -> str:
    """What the workers raised, without Ray's tracebacks; the last of several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lost = [line.partition(f"{worker.LostError.__name__}: ")[2] for line in lines if worker.LostError.__name__ in line]
    return (list(filter(None, lost)) or lines or [type(error).__name__])[-1]


def refused(config: Config) -> str | None:
    """Why the cluster cannot start these processes, and a remedy; None if it can."""
    try:
        with cluster.connected():
            resources = ray.cluster_resources()
    except ConfigError as error:
        return f"{error.message}; {error.hint}"
    return too_small(config.launch, cpus=int(resources.get("CPU", 0)), gpus=int(resources.get("GPU", 0)))


def too_small(settings: LaunchSection, *, cpus: int, gpus: int) -> str | None:
    """Why a cluster is too small for the processes; Ray would wait for more machines without an end."""
    wanted = settings.num_processes
    if wanted is None:
        return None if gpus else "the cluster has no GPU; give the number of processes: --launch.num_processes 2"
    if gpus and wanted > gpus:
        return f"{wanted} processes, but the cluster has {gpus} GPUs: use --launch.num_processes {gpus}"
    if not gpus and wanted > cpus:
        return f"{wanted} processes, but the cluster has {cpus} CPUs: use --launch.num_processes {cpus}"
    return None
