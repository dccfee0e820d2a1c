"""The trials of a sweep as trials of Ray Tune: where there is room, what a command gives back, a machine lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow_ft_ray.engine import cluster as cluster_module
from mlflow_ft_ray.engine import tuning

from mlflow_ft import ConfigError, LaunchSection, Places, Process, Trials
from mlflow_ft.testing import make_rows, write_jsonl

CPUS = {"CPU": 1.0, "GPU": 0.0}
GPUS = {"CPU": 1.0, "GPU": 0.5}


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """The first value that is not empty."""
    while not (value := what()):
        assert process is None or process.poll() is None, "the command has ended"
        time.sleep(0.1)
    return value


def asked(folder: Path, **numbers: Any) -> Trials:
    return Trials(settings=LaunchSection(max_restarts=1), folder=folder, **numbers)


# --- where there is room


@pytest.mark.parametrize(
    ("gpus", "given", "takes"),
    [
        (0, {}, {"CPU": 1, "GPU": 0}),
        (8, {}, {"CPU": 1, "GPU": 1}),
        (8, {"gpus": 0.0, "cpus": 4.0}, {"CPU": 4, "GPU": 0}),
        (8, {"gpus": 0.5}, {"CPU": 1, "GPU": 0.5}),
    ],
)
def test_what_a_trial_takes(tmp_path: Path, gpus: int, given: dict[str, float], takes: dict[str, float]) -> None:
    assert tuning.resources(asked(tmp_path, **given), has_gpu=gpus > 0) == takes


@pytest.mark.parametrize(
    ("takes", "workers", "room"),
    [(CPUS, None, 7), (CPUS, 2, 2), ({"CPU": 2.0}, None, 3), ({"CPU": 4.0}, None, 1), (GPUS, None, 2)],
)
def test_trials_are_as_many_as_each_machine_has_room_for(
    tmp_path: Path, takes: dict[str, float], workers: int | None, room: int
) -> None:
    nodes = [{"CPU": 3.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}, {"memory": 1e9}]
    assert tuning.places(asked(tmp_path, workers=workers), nodes, takes) == room


@pytest.mark.parametrize(
    ("takes", "workers", "message"),
    [
        (CPUS, 8, "--workers 8: the cluster has room for 7 trials at once, each of which takes 1 CPU"),
        ({"CPU": 5.0, "GPU": 1.0}, None, "no machine .* has room for a trial, which takes 5 CPUs and 1 GPU"),
        ({"CPU": 0.0, "GPU": 0.0}, None, "a trial takes no CPU and no GPU"),
    ],
)
def test_trials_without_room_are_refused(
    tmp_path: Path, takes: dict[str, float], workers: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning.places(asked(tmp_path, workers=workers), [{"CPU": 3.0}, {"CPU": 4.0}], takes)


# --- commands on a cluster


@pytest.fixture(scope="module")
def on_cluster(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Places for trials that take a whole CPU of a cluster that has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setenv("MLFLOW_FT_PLUGINS", "")
        with tuning.trials(asked(tmp_path_factory.mktemp("outputs"))) as places:
            yield places


def ended(process: Process) -> int:
    wait_for(lambda: process.poll() is not None)
    code = process.poll()
    assert code is not None
    return code


@pytest.mark.long
def test_commands_run_one_after_another_where_there_is_one_place(on_cluster: Places) -> None:
    assert len(on_cluster.shares) == 1
    commands = [on_cluster.start(["show", kind], os.environ) for kind in ("launchers", "nothing-like-that")]
    assert [ended(command) for command in commands] == [0, 2]


def test_a_signal_reaches_the_command_that_it_is_for(on_cluster: Places, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    slow = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = on_cluster.start(["plugins"], os.environ | slow)
    waiting = on_cluster.start(["plugins"], os.environ)
    command.send_signal(signal.SIGTERM)
    assert ended(command) == -signal.SIGTERM
    assert ended(waiting) == 0


@pytest.mark.usefixtures("on_cluster")
def test_a_folder_that_a_machine_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.check_shared(tmp_path)
    monkeypatch.setattr(cluster_module, "_sees", lambda files: Path(files[0] + "-elsewhere").is_file())
    with pytest.raises(ConfigError, match=r"which [\d.]+ of the cluster cannot see"):
        tuning.check_shared(tmp_path)


# --- a sweep

SPACE = "training.learning_rate: [1e-3, 1e-2, 3e-2]"
STEPS, SAVED, TRIALS = 60, 10, 3


def start(cluster: Any, folder: Path, model: Path, *given: str) -> subprocess.Popen[bytes]:
    """A sweep, as a user starts it: `given` replaces its method and its settings."""
    rows = write_jsonl(folder / "rows.jsonl", make_rows(48))
    (folder / "space.yaml").write_text(SPACE)
    settings: dict[str, Any] = {"model": model, "data": rows, "sweep": "space.yaml", "budget": TRIALS}
    settings |= {"launch.launcher": "ray", "max_steps": STEPS, "save_steps": SAVED, "package.packagers": "[adapter]"}
    settings |= {"evaluation.samples": 0, "evaluation.on_worse": "warn", "evaluation.max_rows": 2}
    pairs = list(given) or ["lora", *(f"--{name}={value}" for name, value in settings.items())]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    environ = os.environ | {"RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": store}
    return subprocess.Popen([sys.executable, "-m", "mlflow_ft", "sweep", *pairs], cwd=folder, env=environ)


def runs(folder: Path) -> tuple[Any, dict[int, Any]]:
    """The run of the sweep, and those of its trials by number."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    trials = {int(run.data.tags["mlflow_ft.trial"]): run for run in found if "mlflow_ft.trial" in run.data.tags}
    (sweep,) = [run for run in found if "mlflow_ft.trial" not in run.data.tags]
    return sweep, trials


def on_nodes(cluster: Any) -> dict[str, Any]:
    """The nodes besides the head on which a trial has saved a checkpoint, by its run."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    found: dict[str, Any] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "mlflow_ft_ray.child" in process.cmdline():
                run_id, above = process.environ()["MLFLOW_RUN_ID"], {parent.pid for parent in process.parents()}
                for pid in above & set(raylets) if saved(Path(process.cwd()), run_id) else ():
                    found[run_id] = raylets[pid]
    return found


def saved(folder: Path, run_id: str) -> list[Path]:
    return list(folder.glob(f"outputs/{run_id}/train/checkpoints/step-*/manifest.json"))


@pytest.mark.fault("a node of a Ray cluster lost during a sweep")
@pytest.mark.long
def test_a_sweep_goes_on_when_a_node_is_lost_and_when_it_is_killed(
    three_nodes: Any, tiny_model: Path, tmp_path: Path
) -> None:
    process = start(three_nodes, tmp_path, tiny_model)
    hit, node = next(iter(wait_for(lambda: on_nodes(three_nodes), process).items()))
    three_nodes.remove_node(node, allow_graceful=False)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    wait_for(lambda: "mlflow_ft.resumed" in client.get_run(hit).data.tags, process)
    process.kill()
    process.wait()
    sweep, before = runs(tmp_path)
    process = start(three_nodes, tmp_path, tiny_model, "--resume", sweep.info.run_id)
    assert process.wait() == 0
    sweep, trials = runs(tmp_path)
    assert sweep.info.status == "FINISHED"
    assert [trials[number].info.status for number in range(TRIALS)] == ["FINISHED"] * TRIALS
    assert {number: run.info.run_id for number, run in trials.items()}.items() >= {
        number: run.info.run_id for number, run in before.items()
    }.items()
    for run in trials.values():
        curve = client.get_metric_history(run.info.run_id, "eval/loss")
        assert len({point.step for point in curve}) == len(curve)
    versions = client.search_model_versions()
    assert [version.run_id for version in versions] == [sweep.data.tags["mlflow_ft.best_trial"]]
