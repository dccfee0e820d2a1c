"""Promotion against a server on PostgreSQL, which the test starts; skipped if PostgreSQL is not installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.errors import TrackingError
from mlflow_ft.tracking.promotion import Ledger
from mlflow_ft.tracking.server import shown
from mlflow_ft.tracking.writable import check_registry
from tests.tracking.conftest import Server, wait_for
from tests.tracking.test_promotion import PROMOTERS, alias, check_race, ledger_of, promote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("initdb") and shutil.which("postgres")), reason="no PostgreSQL"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="no psycopg, with which MLflow reads it"),
]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URI of an empty database of a private PostgreSQL; it refuses to run as root, so root runs it as a user."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-ft-pg-"))
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    port, data = free_port(), folder / "data"
    plain = {"user": user, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    make = ["initdb", "--encoding=UTF8", "--auth=trust", "--username=mlflow", f"--pgdata={data}"]
    subprocess.run(make, check=True, capture_output=True, **plain)  # type: ignore[call-overload]  # several types
    command = ["postgres", "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **plain)  # type: ignore[call-overload]  # as above
    try:
        import psycopg

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                psycopg.connect(host="127.0.0.1", port=port, user="mlflow", dbname="postgres").close()
            except psycopg.OperationalError:
                return False
            return True

        wait_for(answers, seconds=60)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def on_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), backend=postgres, workers=2)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.long
def test_of_twenty_at_once_one_wins(on_postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", on_postgres.uri)
    ledger = ledger_of(MlflowClient(on_postgres.uri), PROMOTERS + 1)
    check_race(ledger, on_postgres.uri)
    winner = alias(ledger)
    promote(ledger, 1, kind="rollback")
    assert alias(ledger) == 1 != winner
    assert Ledger(ledger.client, "chat", "champion").standing().earlier == ()


def test_whether_a_database_accepts_writes_is_tried(on_postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks before a run, with a registry that this process reads itself."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", on_postgres.uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", on_postgres.backend)
    assert check_registry(None) == f"{shown(on_postgres.backend)} accepts writes"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"{on_postgres.backend}?options=-cdefault_transaction_read_only%3Don")
    with pytest.raises(TrackingError, match="cannot execute UPDATE in a read-only transaction"):
        check_registry(None)
