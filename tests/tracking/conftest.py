"""Real stores: an SQLite file per test, and a real server that a test may kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from mlflow_ft.config.schema import Config
from mlflow_ft.data.store import Column
from mlflow_ft.plugins import Plugins
from mlflow_ft.rows import Place
from mlflow_ft.testing import copy_store
from mlflow_ft.tracking import requesting
from mlflow_ft.tracking import run as run_module
from mlflow_ft.values import Split
from tests.faulty_proxy import Failure, FaultyProxy

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh SQLite store, set as tracking URI; the current folder is `tmp_path`."""
    uri = copy_store(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return uri


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient(store)


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    left = mlflow.active_run()
    while mlflow.active_run():
        mlflow.end_run()
    assert left is None, "a fluent run stayed active: MLflow's exit handler would mark it FINISHED"


class Server:
    """`mlflow server` on its own port, on an SQLite file unless another store is named; it can be killed."""

    def __init__(self, folder: Path, *, backend: str = "", workers: int = 1) -> None:
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
        self.workers = workers
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environ = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        wait_for(self.answers, seconds=60)

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def hang(self) -> None:
        """Connections are accepted but not answered."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)  # the group: otherwise its workers outlive it
            self.process.wait()
            self.process = None


def wait_for(condition: Callable[[], Any], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def shared_server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    copy_store(empty_store, folder)
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A real running server whose URI is set."""
    if not shared_server.answers():
        shared_server.kill()
        shared_server.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_server.uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return shared_server


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the server, which is the tracking URI; nobody waits for long while all requests fail."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(requesting, "RETRY_SECONDS", 0)

    def wait_up_to(seconds: float) -> None:
        monkeypatch.setenv("MLFLOW_FT_PATIENCE", str(seconds))
        monkeypatch.setattr(run_module, "PATIENCE_SECONDS", seconds)

    class Proxy(FaultyProxy):
        def fail(self, *arguments: Any, times: int | None = None, **named: Any) -> Failure:
            wait_up_to(0.6 if times is None else 60)  # a server that fails once may be slow, too
            return super().fail(*arguments, times=times, **named)

        def heal(self) -> None:
            wait_up_to(60)  # a server that is back may be slow
            super().heal()

    wait_up_to(0.6)
    with Proxy(server.uri) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        yield proxy


@pytest.fixture
def config() -> Config:
    return Config.model_validate({"method": "sft", "run": {"name": "a-name", "experiment": "an-experiment"}})


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def split() -> Split:
    return Split(
        name="train",
        sources=("/data/rows.jsonl",),
        source_type="local",
        rows=[Place(file="rows.jsonl", line=1)] * 2,
        examples=(),
        encoded=Column.of([]),
        columns=("messages",),
        counts={"rows": 2, "tokens": 4, "supervised_tokens": 3, "truncated": 0, "dropped": 0},
        digest="0123456789abcdef" * 2,
    )


ECHO = '''
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    """Answer with the greeting, the message and the arguments received."""

    def load_context(self, context):
        with open(context.artifacts["greeting"], encoding="utf-8") as file:
            self.greeting = file.read()
        self.weights = sorted(__import__("os").listdir(context.artifacts["weights"]))

    def predict(self, context, model_input, params=None):
        given = {name: value for name, value in (params or {}).items() if value is not None}
        request = {**model_input.iloc[0].to_dict(), **given}
        text = self.greeting + request["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"{text} {request.get('max_tokens')} {request.get('temperature')}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "echo", "choices": [choice]}


set_model(Echo())
'''


@pytest.fixture
def echo(tmp_path: Path) -> dict[str, Any]:
    """Keywords of `log_model` for a model that echoes its input, with a file and a folder as artifacts."""
    (tmp_path / "echo.py").write_text(ECHO)
    (tmp_path / "greeting.txt").write_text("hello ")
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "package" / "inner" / "tokenizer.json").write_text("{}")
    from mlflow_ft.tracking import chat_signature

    return {
        "name": "echo",
        "code": tmp_path / "echo.py",
        "artifacts": {"greeting": tmp_path / "greeting.txt", "weights": tmp_path / "package"},
        "signature": chat_signature(),
        "pip_requirements": ["mlflow"],
        "metadata": {"base": "tiny"},
        "model_type": "adapter",
    }
