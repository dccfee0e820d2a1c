"""The heartbeat of a run, and runs whose process vanished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_ft.cli import cli
from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import ResourceError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import heartbeat, open_run, vanished
from mlflow_ft.tracking.heartbeat import Beat

SCRIPT = """
import sys, time
from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import StoppedError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import heartbeat, open_run
heartbeat.TICK_SECONDS = 0.2
try:
    with open_run(RunSection(name="left"), plugins=Plugins()) as run:
        print(run.run_id, flush=True)
        time.sleep(100)
except StoppedError as error:
    sys.exit(error.exit_code)
"""


def a_beat() -> Beat:
    process = psutil.Process()
    here = {"host": "here", "machine": heartbeat.machine(), "pid": process.pid, "started": process.create_time()}
    return Beat(at=1000.0, stage="train", **here)


def started(command: list[str], **environ: str) -> tuple[subprocess.Popen[str], str]:
    """A process that opens a run, and the id of the run."""
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environ
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ours)
    assert process.stdout
    return process, process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout
    process.stdout.close()


def test_a_process_is_gone_when_it_has_ended_or_another_has_its_number() -> None:
    beat, later = a_beat(), 1000.0 + 10 * heartbeat.AWAY_SECONDS
    assert not beat.gone(later)
    assert replace(beat, started=beat.started - 100).gone(1001.0)
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    assert replace(beat, pid=finished.pid).gone(1001.0)


def test_a_process_that_was_not_collected_is_gone() -> None:
    """A zombie, as of a killed process in a container without an init."""
    zombie = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    process = psutil.Process(zombie.pid)
    beat = replace(a_beat(), pid=zombie.pid, started=process.create_time())
    assert not beat.gone(1001.0)
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert process.status() == psutil.STATUS_ZOMBIE
    assert beat.gone(1001.0)
    zombie.wait()


def test_of_another_machine_only_the_age_of_the_heartbeat_counts() -> None:
    beat = replace(a_beat(), machine="elsewhere")
    assert not beat.gone(1000.0 + heartbeat.AWAY_SECONDS)
    assert beat.gone(1001.0 + heartbeat.AWAY_SECONDS)
    assert beat.gone(1011.0, away=10)


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"at": 1}', "not JSON"])
def test_a_tag_that_is_not_a_heartbeat(text: str | None) -> None:
    assert Beat.of_tag(text) is None


def test_an_open_run_has_a_heartbeat_and_an_ended_one_has_none(client: MlflowClient) -> None:
    with open_run(RunSection(), plugins=Plugins()) as run:
        beat = Beat.of_tag(client.get_run(run.run_id).data.tags[heartbeat.TAG])
        assert beat
        assert (beat.pid, beat.here, beat.stage) == (os.getpid(), True, "start")
        assert abs(beat.at - time.time()) < 60
        [state] = vanished.states()
        assert (state.status, state.vanished) == ("RUNNING", False)
        assert vanished.reap() == []
    assert heartbeat.TAG not in client.get_run(run.run_id).data.tags


def test_the_heartbeat_goes_on_and_names_stage_and_step(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 0.01)
    with open_run(RunSection(), plugins=Plugins()) as run:
        run.open_journal(tmp_path / "run")
        run.begin("train")
        run.metric("train/loss", 1.0, step=7)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            beat = Beat.of_tag(client.get_run(run.run_id).data.tags[heartbeat.TAG])
            if beat and (beat.stage, beat.step) == ("train", 7):
                return
    pytest.fail("no heartbeat has the stage and the step")


@pytest.mark.slow
def test_the_run_of_a_killed_process_is_marked_killed_by_the_next_command(client: MlflowClient) -> None:
    process, run_id = started([sys.executable, "-c", SCRIPT])
    killed(process)
    shown = CliRunner().invoke(cli, ["runs", "--json"])
    [listed] = json.loads(shown.stdout)["runs"]
    assert (listed["run_id"], listed["status"], listed["vanished"]) == (run_id, "RUNNING", True)
    with open_run(RunSection(), plugins=Plugins()):
        pass
    left = client.get_run(run_id)
    beat = Beat.of_tag(left.data.tags[heartbeat.TAG])
    assert beat
    assert (left.info.status, left.info.end_time) == ("KILLED", int(beat.at * 1000))
    assert f"process {process.pid} on" in left.data.tags["mlflow_ft.error"]
    assert left.data.tags["mlflow_ft.stage"] == "start"
    assert left.data.tags["mlflow.note.content"].startswith(
        f"**KILLED** in the stage start\n\n```\nprocess {process.pid} on"
    )
    assert f"mlflow-ft resume {run_id}" in left.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_runs_reap_names_memory_if_the_kernel_killed_for_it(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, run_id = started([sys.executable, "-c", SCRIPT])
    killed(process)
    count = heartbeat.oom_kills()
    monkeypatch.setattr(heartbeat, "oom_kills", lambda: count + 1)
    shown = CliRunner().invoke(cli, ["runs", "--reap"])
    assert shown.exit_code == 0
    assert f"{run_id}: its process is gone; marked KILLED" in shown.stderr
    error = client.get_run(run_id).data.tags["mlflow_ft.error"]
    assert "lack of memory" in error
    assert "gradient_accumulation_steps" in error


@pytest.mark.slow
def test_a_run_whose_launcher_was_killed_ends_killed(client: MlflowClient, tmp_path: Path) -> None:
    launcher = tmp_path / "mlflow"
    launcher.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SCRIPT!r}])\n")
    run_id = client.create_run("0").info.run_id
    process, opened = started([sys.executable, str(launcher), "run", "."], MLFLOW_RUN_ID=run_id)
    assert opened == run_id
    killed(process)
    deadline = time.monotonic() + 60
    while "mlflow_ft.error" not in client.get_run(run_id).data.tags and time.monotonic() < deadline:
        time.sleep(0.2)
    stopped = client.get_run(run_id)
    assert (stopped.info.status, stopped.data.tags["mlflow_ft.error"]) == ("KILLED", "stopped by signal 15")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_reported_with_what_helps(client: MlflowClient, error: Exception) -> None:
    with (
        pytest.raises(ResourceError, match="out of memory") as caught,
        open_run(RunSection(), plugins=Plugins()) as run,
    ):
        raise error
    assert caught.value.hint.startswith("in order of cost: halve training.per_device_train_batch_size")
    failed = client.get_run(run.run_id)
    assert failed.info.status == "FAILED"
    assert "out of memory" in failed.data.tags["mlflow_ft.error"]


@pytest.mark.parametrize("command", ["promote", "rollback", "history"])
def test_commands_that_open_no_run_mark_vanished_runs_too(client: MlflowClient, command: str) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    run_id = client.create_run("0", tags={"mlflow_ft.plugins": "x"}).info.run_id
    client.set_tag(run_id, heartbeat.TAG, json.dumps(asdict(replace(a_beat(), pid=finished.pid))))
    more = ["--reason", "bad"] if command == "rollback" else []
    assert CliRunner().invoke(cli, [command, "no-such-model", *more]).exit_code != 0
    assert client.get_run(run_id).info.status == "KILLED"
