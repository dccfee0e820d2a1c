from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import FineTuneError, ProcessError, StoppedError, TrackingError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import ActiveRun, deliver, open_run
from mlflow_ft.tracking.signals import StopSignals


def status(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def test_a_run_is_made_in_its_experiment_and_finishes(client: MlflowClient, config: Config, plugins: Plugins) -> None:
    with open_run(config.run, plugins=plugins) as run:
        assert status(client, run.run_id) == "RUNNING"
        assert mlflow.active_run().info.run_id == run.run_id  # mlflow.log_metric in a plugin logs to this run
        mlflow.log_metric("plugin", 1)

    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "a-name"
    assert stored.data.metrics == {"plugin": 1}
    assert client.get_experiment(stored.info.experiment_id).name == "an-experiment"
    assert run.url is None


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("no memory " + "x" * 6000), "FAILED", "no memory xxx"),
        (StoppedError(signal.SIGTERM), "KILLED", "stopped by signal 15"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
    ],
)
def test_the_state_and_the_error_of_a_run_that_raises(
    client: MlflowClient, config: Config, plugins: Plugins, error: BaseException, state: str, message: str
) -> None:
    with pytest.raises(type(error)), open_run(config.run, plugins=plugins) as run:
        run.begin("train")
        raise error

    stored = client.get_run(run.run_id)
    assert stored.info.status == state
    assert stored.data.tags["mlflow_ft.error"].startswith(message)
    assert len(stored.data.tags["mlflow_ft.error"]) <= 5000
    assert stored.data.tags["mlflow_ft.stage"] == "train"


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("code", [0, None, 3])
def test_an_exit_within_a_run_is_a_failure(
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
    *,
    code: int | None,
    replaced: bool,
) -> None:
    of_python = sys.exit

    class Hooks:  # what a library may put in its place, as wandb does
        def exit(self, code: int | None = None) -> NoReturn:
            of_python(code)

    if replaced:
        monkeypatch.setattr(sys, "exit", Hooks().exit)
    with (
        pytest.raises(FineTuneError, match=rf"exit\({'' if code is None else code}\) was called in .*") as caught,
        open_run(config.run, plugins=plugins) as run,
    ):
        line = sys._getframe().f_lineno + 1
        sys.exit(code)
    assert f"test_run.py line {line}\n" in str(caught.value)
    assert status(client, run.run_id) == "FAILED"
    assert client.get_run(run.run_id).data.tags["mlflow_ft.error"].startswith("exit(")


def test_the_run_that_mlflow_run_opened_is_adopted(
    client: MlflowClient, config: Config, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = client.create_run("0", tags={"mlflow_ft.error": "an earlier attempt", "mlflow_ft.stage": "train"})
    client.log_param(opened.info.run_id, "method", "'sft'")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")

    with open_run(config.run, plugins=plugins) as run:
        assert "MLFLOW_RUN_ID" not in os.environ
        assert run.run_id == opened.info.run_id

    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "a-name"
    assert "mlflow_ft.error" not in stored.data.tags
    assert "mlflow_ft.stage" not in stored.data.tags
    assert client.get_experiment_by_name("an-experiment") is None
    assert len(client.search_runs(["0"])) == 1


def test_an_unknown_run_id_is_reported(
    store: str, config: Config, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with (
        pytest.raises(TrackingError, match=r"named by MLFLOW_RUN_ID.*not found"),
        open_run(config.run, plugins=plugins),
    ):
        pytest.fail("opened")


def test_a_deleted_experiment_is_reported(client: MlflowClient, config: Config, plugins: Plugins) -> None:
    client.delete_experiment(client.create_experiment("an-experiment"))
    with pytest.raises(TrackingError, match="was deleted"), open_run(config.run, plugins=plugins):
        pytest.fail("opened")


def test_another_active_run_is_not_touched(client: MlflowClient, config: Config, plugins: Plugins) -> None:
    with (
        mlflow.start_run() as other,
        pytest.raises(TrackingError, match="is active"),
        open_run(config.run, plugins=plugins),
    ):
        pytest.fail("opened")
    assert status(client, other.info.run_id) == "FINISHED"


def test_signal_handlers_and_environment_are_as_before(store: str, config: Config, plugins: Plugins) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ)
    with open_run(config.run, plugins=plugins):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ))


def test_a_run_opens_in_a_thread_without_handlers(client: MlflowClient, config: Config, plugins: Plugins) -> None:
    ids: list[str] = []

    def work() -> None:
        with open_run(config.run, plugins=plugins) as run:
            ids.append(run.run_id)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert status(client, ids[0]) == "FINISHED"


class TestSignals:
    def test_the_first_signal_raises(self) -> None:
        signals = StopSignals()
        with signals.installed(), pytest.raises(StoppedError) as stopped:
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.exit_code == 130

    def test_a_deferred_signal_raises_at_the_end_of_the_block(self) -> None:
        run = ActiveRun(
            run_id="r", experiment_id="0", tracking_uri="http://127.0.0.1:9", signals=(signals := StopSignals())
        )
        seen: list[bool] = []
        with signals.installed(), pytest.raises(StoppedError) as stopped, run.deferring_stop():
            seen.append(run.stopping)
            signal.raise_signal(signal.SIGTERM)
            seen.append(run.stopping)
        assert seen == [False, True]
        assert stopped.value.exit_code == 143

    def test_the_second_signal_raises_inside_the_block(self) -> None:
        signals = StopSignals()
        with signals.installed(), signals.deferring():
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(StoppedError):
                signal.raise_signal(signal.SIGTERM)
            signals.received = None

    def test_an_error_of_the_block_is_not_replaced(self) -> None:
        signals = StopSignals()
        with signals.installed(), pytest.raises(ValueError, match="first"), signals.deferring():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("first")

    def test_a_stop_that_was_swallowed_is_raised_at_the_next_stage(self) -> None:
        run = ActiveRun(
            run_id="r", experiment_id="0", tracking_uri="http://127.0.0.1:9", signals=(signals := StopSignals())
        )
        with signals.installed():
            with pytest.raises(StoppedError):
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(StoppedError):
                run.begin("evaluate")


SCRIPT = """
import os, sys, time
import mlflow
from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import FineTuneError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import open_run

try:
    with open_run(RunSection(), plugins=Plugins()) as run:
        mlflow.log_metric("fluent", 1)
        print(run.run_id, flush=True)
        {body}
except FineTuneError as error:
    sys.exit(error.exit_code)
"""


ENDS = {
    "a SIGTERM": ("time.sleep(60)", signal.SIGTERM, 143, "KILLED"),
    "a SIGINT": ("time.sleep(60)", signal.SIGINT, 130, "KILLED"),
    "an error": ("raise RuntimeError('x')", None, 1, "FAILED"),  # MLflow's exit handler would make it FINISHED
}


def start(body: str) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ)


@pytest.mark.slow
def test_a_process_that_is_stopped_or_fails_leaves_the_true_state(client: MlflowClient) -> None:
    processes = {name: start(body) for name, (body, *_) in ENDS.items()}
    ends = {}
    for name, (_, send, *_) in ENDS.items():
        process = processes[name]
        assert process.stdout
        with process.stdout as lines:
            run_id = lines.readline().strip()
        if send:
            process.send_signal(send)
        ends[name] = (process.wait(60), status(client, run_id))

    assert ends == {name: (exit_code, state) for name, (_, _, exit_code, state) in ENDS.items()}


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on the server does not answer."""

    def leave() -> None:
        monkeypatch.setattr("mlflow_ft.tracking.run.answers", lambda uri: False)
        monkeypatch.setattr("mlflow_ft.tracking.metrics.answers", lambda uri: False)
        monkeypatch.setattr("mlflow_ft.tracking.run.PATIENCE_SECONDS", 0.3)

    return leave


def test_a_run_that_fails_while_the_server_is_away_keeps_its_own_error(
    client: MlflowClient, config: Config, plugins: Plugins, no_server: Callable[[], None], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="mine"), open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "folder")
        no_server()
        raise ValueError("mine")

    assert json.loads((tmp_path / "folder" / "run.json").read_text())["pending_status"] == "FAILED"
    assert deliver(tmp_path / "folder") == 0
    assert status(client, run.run_id) == "FAILED"


def test_a_signal_that_a_library_wraps_in_its_own_error_ends_the_run_killed(
    client: MlflowClient, config: Config, plugins: Plugins
) -> None:
    """MLflow's SQL store turns whatever is raised inside it, a signal's error too, into an error of its own."""
    with pytest.raises(StoppedError) as caught, open_run(config.run, plugins=plugins) as run:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except StoppedError as stopped:
            raise MlflowException(f"could not set tags: {stopped}") from stopped
    assert caught.value.exit_code == 143
    assert status(client, run.run_id) == "KILLED"


def test_a_signal_that_follows_the_loss_of_a_process_does_not_hide_it(
    client: MlflowClient, config: Config, plugins: Plugins
) -> None:
    """torchrun stops the other processes when one is lost."""
    with pytest.raises(ProcessError), open_run(config.run, plugins=plugins) as run:
        try:
            raise ProcessError("rank 1 of 2 died")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["mlflow_ft.error"]) == ("FAILED", "rank 1 of 2 died")
