from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import ConfigError, TrackingError
from mlflow_ft.tracking.environ import REPEATS, without_repeats
from mlflow_ft.tracking.faults import Fault, UnacceptedError
from mlflow_ft.tracking.server import (
    absolute,
    answers,
    check_server,
    insist,
    page,
    patience,
    shown,
)


@pytest.fixture
def serve() -> Iterator[Callable[[int, str], str]]:
    """Start a server that answers everything in one way; returns its URI."""
    servers: list[HTTPServer] = []

    def start(status: int, text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_mlflow_server_passes(serve: Callable[[int, str], str]) -> None:
    check_server(serve(200, "OK"))


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (403, "Invalid Host header", "--allowed-hosts 127.0.0.1"),
        (401, "", "MLFLOW_TRACKING_USERNAME"),
        (404, "Not Found", "not an MLflow server"),
        (200, "<html>hello</html>", "not an MLflow server"),
        (502, "Bad Gateway", "not an MLflow server"),
    ],
)
def test_a_refusal_is_reported(serve: Callable[[int, str], str], status: int, text: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message):
        check_server(serve(status, text))


@pytest.fixture
def behind_proxy() -> Iterator[Callable[..., str]]:
    """Start a server that answers `paths` only, and with `authorization` only to requests that have it."""
    servers: list[HTTPServer] = []

    def start(paths: dict[str, str], authorization: str | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = paths.get(self.path.partition("?")[0])
                admitted = self.headers.get("Authorization") == authorization
                self.send_response(401 if not admitted else 404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_proxy_that_wants_credentials_for_everything_gets_them(
    behind_proxy: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = behind_proxy({"/health": "OK"}, "Bearer abc")
    with pytest.raises(TrackingError, match="requires authentication"):
        check_server(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    check_server(uri)


@pytest.mark.parametrize("health", [{}, {"/team/health": '{"status": "up"}'}], ids=["none", "its own"])
def test_a_proxy_with_another_health_is_asked_for_experiments(
    behind_proxy: Callable[..., str], health: dict[str, str]
) -> None:
    uri = behind_proxy({"/team/api/2.0/mlflow/experiments/search": "{}", **health})
    check_server(f"{uri}/team/")
    with pytest.raises(TrackingError, match="not an MLflow server"):
        check_server(uri)


def test_credentials_that_contradict_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "ca.pem")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
        check_server("https://127.0.0.1:9")


def test_a_server_that_does_not_answer_is_reported_with_uri_and_remedy() -> None:
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 .*\n.*mlflow server"):
        check_server("http://user:secret@127.0.0.1:9", timeout=1)


def test_the_uri_is_mlflows_own_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        check_server()


def test_an_sqlite_file_needs_a_folder(tmp_path: Path) -> None:
    check_server(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match="no folder"):
        check_server(f"sqlite:///{tmp_path}/none/mlflow.db")


def test_an_sqlite_file_that_is_not_writable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(TrackingError, match="is not writable"):
        check_server(f"sqlite:///{tmp_path}/mlflow.db")


def test_databricks_is_not_probed() -> None:
    check_server("databricks")
    assert answers("databricks")


def test_a_gateway_error_is_not_an_answer(serve: Callable[[int, str], str]) -> None:
    assert answers(serve(403, ""))
    assert not answers(serve(503, ""))


def test_uris_are_absolute_and_shown_without_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///a/mlflow.db") == f"sqlite:///{tmp_path}/a/mlflow.db"
    assert absolute("sqlite:////a/mlflow.db?timeout=5") == "sqlite:////a/mlflow.db?timeout=5"
    assert absolute("mlruns") == str(tmp_path / "mlruns")
    assert absolute("http://host:5000") == "http://host:5000"
    assert absolute("databricks") == "databricks"
    assert shown("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert page("https://me:secret@host/mlflow/", "7", "abc") == "https://host/mlflow/#/experiments/7/runs/abc"
    assert page("sqlite:///a.db", "7", "abc") is None


def test_the_page_of_a_run_is_that_of_its_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    assert page("http://host/mlflow", "7", "abc") == "http://host/mlflow/#/experiments/7/runs/abc?workspace=team-a"


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


AWAY = "API request to http://127.0.0.1:9/api failed with exception HTTPConnectionPool"


def test_a_stage_waits_for_a_server_that_is_away(serve: Callable[[int, str], str]) -> None:
    slept: list[float] = []
    call = Flaky(MlflowException(AWAY), MlflowException(AWAY))

    assert insist("log x", call, uri=serve(200, "OK"), sleep=slept.append) == "done"
    assert slept == [0.5, 1.0]


def test_patience_ends() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    call = Flaky(*[MlflowException(AWAY)] * 1000)
    with pytest.raises(UnacceptedError, match=r"could not log x: http://127\.0\.0\.1:9 does not answer") as error:
        insist("log x", call, uri="http://127.0.0.1:9", sleep=sleep, clock=lambda: now[0], seconds=300)
    assert now[0] == 300
    assert error.value.fault is Fault.AWAY


def test_a_run_that_is_stopping_does_not_wait() -> None:
    with pytest.raises(UnacceptedError):
        insist(
            "log x", Flaky(MlflowException(AWAY)), uri="http://127.0.0.1:9", sleep=pytest.fail, stopping=lambda: True
        )


def test_a_server_that_answers_but_takes_no_files_has_a_full_artifact_store(serve: Callable[[int, str], str]) -> None:
    upload = "API request to http://h/api/2.0/mlflow-artifacts/artifacts/1 failed with exception: too many 500"
    with pytest.raises(UnacceptedError, match="make room in the artifact store") as error:
        insist("log x", Flaky(MlflowException(upload)), uri=serve(200, "OK"), seconds=0)
    assert error.value.fault is Fault.STORE


def test_the_patience_is_a_number_of_seconds() -> None:
    assert patience({}) == 300
    assert patience({"MLFLOW_FT_PATIENCE": "1.5"}) == 1.5
    for text in ("soon", "-1", "inf", "nan"):
        with pytest.raises(ConfigError, match=f"MLFLOW_FT_PATIENCE={text}"):
            patience({"MLFLOW_FT_PATIENCE": text})


def test_nothing_is_repeated_and_the_users_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPEATS, "4")
    first, second = without_repeats(), without_repeats()  # of two threads
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ[REPEATS] == "0"
    second.__exit__(None, None, None)
    assert os.environ[REPEATS] == "4"


def test_a_refusal_is_not_retried(serve: Callable[[int, str], str]) -> None:
    with pytest.raises(TrackingError, match="could not log x: no such run"):
        insist("log x", Flaky(MlflowException("no such run")), uri=serve(200, "OK"), sleep=pytest.fail)
