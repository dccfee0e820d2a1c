"""The trials of a sweep as trials of Ray Tune: Tune decides where they run, and starts those again that it lost.

Optuna proposes the trials, prunes them and records how they end, in the process that started the sweep; to Tune it is a
searcher that hands out one command after another.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from mlflow_ft import ConfigError, Places, Process, Trials
from mlflow_ft_ray import child
from mlflow_ft_ray.engine import board, cluster, worker

LOST = -9
"""The exit code of a command whose machine was lost too often: that of a process that was killed."""
SWITCHED = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_WARN_THRESHOLD_S": "60"}


@contextmanager
def trials(asked: Trials) -> Iterator[Places]:
    """Places for trials on the cluster, as long as the connection lasts.

    Raises:
        ConfigError: no cluster answers, it has no room for the trials, or a machine does not see the folder.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SWITCHED.items()})
    # it misses the files of its loggers, and shows where a trial was when its machine was lost: the sweep tells both
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with cluster.connected(), tempfile.TemporaryDirectory(prefix="mlflow-ft-ray-") as storage:
        takes = resources(asked, has_gpu=ray.cluster_resources().get("GPU", 0) > 0)
        size = places(asked, [node["Resources"] for node in cluster.alive()], takes)
        check_shared(asked.folder)
        tuning = Tuning(takes, storage, retries=asked.settings.max_restarts)
        try:
            yield Places(start=tuning.start, shares=[{}] * size)
        finally:
            tuning.end()


def resources(asked: Trials, *, has_gpu: bool) -> dict[str, float]:
    """What each trial takes: as asked, else one CPU, and one GPU where the cluster has one."""
    cpus = 1.0 if asked.cpus is None else asked.cpus
    gpus = float(has_gpu) if asked.gpus is None else asked.gpus
    return {"CPU": cpus, "GPU": gpus}


def places(asked: Trials, nodes: Sequence[Mapping[str, float]], takes: Mapping[str, float]) -> int:
    """How many trials run at once.

    Raises:
        ConfigError: the cluster has no room for so many, or for none.
    """
    wanted = {name: amount for name, amount in takes.items() if amount}
    if not wanted:
        raise ConfigError("a trial takes no CPU and no GPU", hint="give one: --cpus-per-trial 1")
    room = sum(min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items()) for node in nodes)
    each = " and ".join(f"{amount:g} {name}{'s' * (amount > 1)}" for name, amount in wanted.items())
    if not room:
        raise ConfigError(
            f"no machine of the cluster has room for a trial, which takes {each}",
            hint="ask for less with --cpus-per-trial and --gpus-per-trial, or add a machine",
        )
    if (asked.workers or 0) > room:
        raise ConfigError(
            f"--workers {asked.workers}: the cluster has room for {room} trials at once, each of which takes {each}",
            hint=f"use --workers {room}, or leave it out",
        )
    return asked.workers or room


def check_shared(folder: Path) -> None:
    """Refuse a folder that a machine of the cluster does not see.

    Raises:
        ConfigError: there is such a machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".mlflow-ft-", dir=folder) as marker:
        blind = cluster.blind([Path(marker.name)])
    if blind:
        raise ConfigError(
            f"the trials keep their weights in {folder}, which {' and '.join(blind)} of the cluster cannot see",
            hint="name a folder on a disk that all machines share: --run.output_dir",
        )


class Command:
    """A command on the cluster (`mlflow_ft.Process`)."""

    def __init__(self, name: str, wall: Any, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.config = {"name": name, "arguments": list(arguments), "environ": dict(environ)}
        self.code: int | None = None
        self._wall = wall

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        ray.get(self._wall.stop.remote(number, self.name))


class Handing(Searcher):
    """Hands the commands out to Tune as they come, and notes how they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.begun: dict[str, Command] = {}
        self.ended = False

    def suggest(self, trial_id: str) -> Any:
        """The next command; None while there is none, FINISHED when there will be none."""
        if self.ended:
            return Searcher.FINISHED
        try:
            command = self.waiting.get_nowait()
        except queue.Empty:
            return None
        self.begun[trial_id] = command
        return command.config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, **more: Any) -> None:
        """Note the exit code; without a result the machine was lost, once more than Tune tries again."""
        self.begun.pop(trial_id).code = int((result or {}).get("exit_code", LOST))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing: Optuna's study is what a sweep is taken up from."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def abandon(self) -> None:
        """Note that nothing runs any more."""
        for command in self.begun.values():
            command.code = LOST
        while not self.waiting.empty():
            self.waiting.get_nowait().code = LOST


class Tuning:
    """A tuner of Ray Tune at work in a thread: in the main one, Tune would replace the handler of SIGINT."""

    def __init__(self, takes: Mapping[str, float], storage: str, *, retries: int) -> None:
        self._wall = board.put_up()
        self._handing = Handing()
        self._numbers = itertools.count()
        shared = {"environ": cluster.forwarded(), "folder": str(Path.cwd()), "wall": self._wall}
        named = {name.lower(): amount for name, amount in takes.items()}
        self._tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, shared=shared), named),
            tune_config=tune.TuneConfig(
                search_alg=self._handing,
                num_samples=-1,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="mlflow-ft",
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=retries),
                verbose=0,
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="mlflow-ft-ray", daemon=True)
        self._thread.start()

    def start(self, arguments: Sequence[str], variables: Mapping[str, str]) -> Process:
        """Have Tune start `mlflow-ft ARGUMENTS`."""
        shared = cluster.forwarded()
        own = {name: value for name, value in cluster.forwarded(environ=variables).items() if shared.get(name) != value}
        name = f"{next(self._numbers)}-{arguments[0]}"
        command = Command(name, self._wall, arguments, own)
        self._handing.waiting.put(command)
        if not self._thread.is_alive():
            self._handing.abandon()
        return command

    def end(self) -> None:
        """Have Tune end; the commands have ended."""
        self._handing.ended = True
        self._thread.join()

    def _fit(self) -> None:
        try:
            self._tuner.fit()
        finally:
            self._handing.abandon()


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def run(asked: Mapping[str, Any], *, shared: Mapping[str, Any]) -> None:
    """What Tune runs on a machine: the command, in a process of its own as a run handles signals."""
    environ = os.environ | shared["environ"] | asked["environ"]
    process = subprocess.Popen(
        child.command("mlflow_ft", asked["arguments"]),
        stdout=subprocess.DEVNULL,
        env=environ,
        cwd=worker.working_folder(shared["folder"]),
    )
    tune.report({"exit_code": worker.wait(process, shared["wall"], asked["name"])})
