"""Whether a run can write to the stores: tried on real ones, of which nothing is left afterwards."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_ft.config.schema import RunSection
from mlflow_ft.errors import TrackingError
from mlflow_ft.hashes import file_hash
from mlflow_ft.tracking import databases, run_place, writable
from mlflow_ft.values.inspected import Caution
from tests.tracking.conftest import Server

NOBODY = 65534


def tracking(experiment: str | None = None) -> tuple[str, run_place.RunPlace]:
    return writable.check_tracking(RunSection(experiment=experiment))


# --- SQLite


def test_a_store_that_accepts_writes_stays_as_it_is(store: str, tmp_path: Path) -> None:
    before = file_hash(tmp_path / "mlflow.db")
    detail, place = tracking()
    assert detail == f"{store} accepts writes"
    assert place.experiment_id == "0"
    assert writable.check_registry(None) == "in the tracking store"
    assert file_hash(tmp_path / "mlflow.db") == before
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_new_store_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    monkeypatch.chdir(tmp_path)
    detail, place = tracking()
    assert detail.endswith("new.db, which is new")
    assert run_place.check_artifacts(place) == str(tmp_path / "mlruns")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a store that anyone may read, and nobody but its owner may write."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(tmp_path / "mlflow.db", folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    tracking()  # imports everything while it can be read
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o777), (0o666, 0o555)])
def test_a_store_that_cannot_be_written_is_reported(public: Path, file: int, folder: int) -> None:
    (public / "mlflow.db").chmod(file)
    public.chmod(folder)
    with (
        as_nobody(),
        pytest.raises(TrackingError, match=r"mlflow\.db(: the f\w+ .* is not writable| cannot be written:)") as error,
    ):
        tracking()
    assert error.value.hint == "make it writable, or set MLFLOW_TRACKING_URI to another file"


def test_a_folder_for_a_new_store_that_cannot_be_written(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public.chmod(0o555)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{public}/new.db")
    with as_nobody(), pytest.raises(TrackingError, match=r"cannot write under the folder|is not writable"):
        tracking()


def test_a_store_that_another_process_keeps_locked(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "LOCKED_SECONDS", 0.1)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match="is locked: another process has been writing") as error:
            tracking()
    assert f"fuser {tmp_path}/mlflow.db" in error.value.hint
    tracking()


# --- URIs that cannot work


@pytest.mark.parametrize(
    ("uri", "message", "hint"),
    [
        ("sqlite://mlflow.db", "Invalid SQLite URL", "to sqlite:///mlflow.db"),
        ("htp://host:5000", "MLflow has no store of the kind htp", "http://HOST:PORT"),
        ("./runs", "MLflow no longer keeps runs in folders", "migrate-filestore"),
        ("postgresql://me:secret@127.0.0.1:9/x", "postgresql://127.0.0.1:9/x cannot be written: ", "another database"),
        ("http://127.0.0.1:9", "no tracking server answers", "mlflow server"),
    ],
)
def test_a_uri_that_cannot_work(monkeypatch: pytest.MonkeyPatch, uri: str, message: str, hint: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=message) as error:
        tracking()
    assert hint in error.value.hint
    assert "secret" not in str(error.value)


def test_a_registry_elsewhere_is_named_by_its_variable(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    tracking()
    with pytest.raises(TrackingError, match=r"no registry server answers at http://127\.0\.0\.1:9") as error:
        writable.check_registry(None)
    assert "set MLFLOW_REGISTRY_URI" in error.value.hint
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:////nowhere/registry.db")
    with pytest.raises(TrackingError, match="no folder /nowhere"):
        writable.check_registry(None)


# --- where the run will be


def test_the_place_of_the_run(client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = client.create_run("0")
    other = client.create_experiment("other", artifact_location=f"file://{tmp_path}/elsewhere")
    assert tracking("other")[1].folder == tmp_path / "elsewhere"
    assert tracking("unheard of")[1] == run_place.RunPlace(experiment_id=None, artifacts=f"{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert tracking()[1].experiment_id == other
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert tracking()[1].experiment_id == "0"
    assert tracking("other")[1].experiment_id == other
    client.delete_experiment(other)
    with pytest.raises(TrackingError, match="the experiment 'other' was deleted"):
        tracking("other")
    assert writable.check_tracking(RunSection(experiment="other"), run.info.run_id)[1].experiment_id == "0"
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert tracking("other")[1].artifacts == run.info.artifact_uri
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="could not find run 0000"):
        tracking()


def test_an_artifact_folder_that_cannot_be_written(client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("not a folder")
    client.create_experiment("usual")
    with pytest.raises(TrackingError, match=r"cannot write under the artifact folder .*/mlruns/\d: Not a dir") as error:
        run_place.check_artifacts(tracking("usual")[1])
    assert error.value.hint == "make it writable"
    client.create_experiment("other", artifact_location=f"file://{tmp_path}/mlflow.db/0")
    with pytest.raises(TrackingError, match=r"mlflow\.db/0: Not a directory") as error:
        run_place.check_artifacts(tracking("other")[1])
    assert f"use a new experiment (--run.experiment NAME), whose artifacts go to {tmp_path}/mlruns" in error.value.hint


# --- a server

SERVED = "served"
"""An experiment that was created by the server, which therefore keeps its artifacts."""


@pytest.fixture
def served(server: Server) -> Server:
    client = MlflowClient(server.uri)
    if client.get_experiment_by_name(SERVED) is None:
        client.create_experiment(SERVED)
    return server


def test_a_server_that_accepts_runs_keeps_nothing_of_the_trial(served: Server) -> None:
    detail, place = tracking(SERVED)
    assert detail == f"{served.uri} accepts runs"
    assert place.experiment_id
    assert run_place.check_artifacts(place) == f"mlflow-artifacts:/{place.experiment_id} accepts uploads"
    models = MlflowClient(served.uri).search_registered_models()
    assert writable.check_registry("no-such-model") == "on the tracking server"
    client = MlflowClient(served.uri)
    assert client.get_experiment(place.experiment_id).tags == {}
    assert client.search_runs([place.experiment_id], run_view_type=ViewType.ALL) == []
    assert len(client.search_registered_models()) == len(models)
    assert list((served.folder / "artifacts" / place.experiment_id).iterdir()) == []


Refusing = Callable[..., str]


@pytest.fixture
def refusing(served: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    """Put a proxy before the real server that answers requests whose line has `part` in it with `status`."""
    proxies: list[ThreadingHTTPServer] = []

    def start(part: str, status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if part in self.requestline:
                    self.answer(status, b"you shall not pass")
                    return
                kept = {name: value for name, value in self.headers.items() if name == "Content-Type"}
                answer = requests.request(self.command, served.uri + self.path, data=body, headers=kept, timeout=30)
                self.answer(answer.status_code, answer.content)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = forward  # noqa: N815  # names of http.server

            def log_message(self, *_: object) -> None:
                pass

        proxies.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=proxies[-1].serve_forever, args=(0.01,), daemon=True).start()
        uri = f"http://127.0.0.1:{proxies[-1].server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    yield start
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("GET /api/2.0/mlflow/experiments/search", 401, "no user, or one with a wrong password, may not read"),
        ("experiments/delete-experiment-tag", 403, "the user of this process may not write to the experiment"),
        ("experiments/set-experiment-tag", 500, "answers, but cannot write (500: you shall not pass)"),
        ("POST /api/2.0/mlflow/runs/create", 403, "may not create runs in the experiment (403: you shall not pass)"),
        ("POST", 405, "may not write to the experiment (405"),
    ],
)
def test_a_server_that_refuses_to_be_written(refusing: Refusing, part: str, status: int, message: str) -> None:
    refusing(part, status)
    with pytest.raises(TrackingError) as error:
        tracking()
    assert message in error.value.message
    assert error.value.hint


def test_a_user_who_may_not_create_experiments(refusing: Refusing) -> None:
    refusing("experiments/create", 403)
    with pytest.raises(TrackingError, match="may not create the experiment"):
        tracking("brand new")


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("registered-models/search", 404, "has no model registry (404"),
        ("registered-models/create", 403, "may not register models (403"),
        ("model-versions/create", 403, "may not add versions to mine (403"),
    ],
)
def test_a_registry_that_refuses(server: Server, refusing: Refusing, part: str, status: int, message: str) -> None:
    if not MlflowClient(server.uri).search_registered_models("name = 'mine'"):
        MlflowClient(server.uri).create_registered_model("mine")
    refusing(part, status)
    with pytest.raises(TrackingError) as error:
        writable.check_registry("mine")
    assert message in error.value.message
    MlflowClient(server.uri).delete_registered_model("mine")


def test_a_server_that_leaves_artifacts_to_its_clients(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    location = f"file://{tmp_path}/file/0"
    MlflowClient(server.uri).create_experiment(f"unserved {tmp_path.name}", artifact_location=location)
    with pytest.raises(TrackingError, match="cannot write under the artifact folder") as error:
        run_place.check_artifacts(tracking(f"unserved {tmp_path.name}")[1])
    assert "--serve-artifacts" in error.value.hint


@pytest.mark.parametrize(("host", "shared"), [("127.0.0.1", True), ("mlflow.example", False)])
def test_a_folder_that_a_server_elsewhere_names_may_be_another_one_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    *,
    shared: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:5000")
    told = run_place.check_artifacts(run_place.RunPlace(experiment_id="1", artifacts=f"file://{tmp_path}/1"))
    assert isinstance(told, Caution) is not shared
    assert str(tmp_path / "1") in (told.message if isinstance(told, Caution) else told)


def test_an_artifact_store_that_refuses(refusing: Refusing) -> None:
    refusing("PUT", 500)
    with pytest.raises(TrackingError, match="cannot be written: its server answers 500 to an upload"):
        run_place.check_artifacts(tracking(SERVED)[1])


def test_nothing_is_uploaded_that_cannot_be_deleted(refusing: Refusing, server: Server) -> None:
    refusing("DELETE", 403)
    told = run_place.check_artifacts(tracking(SERVED)[1])
    assert isinstance(told, str)
    assert "this user may not delete a trial" in told
    assert not list((server.folder / "artifacts").rglob("trial"))


def test_the_artifacts_of_a_new_experiment_of_a_server_are_not_tried(server: Server) -> None:
    told = run_place.check_artifacts(tracking("brand new")[1])
    assert not isinstance(told, Caution)
    assert told.startswith("of a new experiment")
