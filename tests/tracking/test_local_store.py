"""A new store on SQLite that several processes open at once, and one that was left broken."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from alembic import command
from alembic.config import Config
from mlflow import MlflowClient
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

from mlflow_ft.errors import TrackingError
from mlflow_ft.tracking import local_store
from mlflow_ft.tracking.server import check_server, connect

OPEN = """
import sys
import mlflow
from mlflow_ft.tracking import check_server
sys.stdin.read()  # all begin together
check_server()
with mlflow.start_run():
    mlflow.log_metric("loss", 1.0)
"""


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """A store is prepared once per process; forget that between tests."""
    local_store.prepare.cache_clear()
    yield
    local_store.prepare.cache_clear()


@pytest.mark.long
def test_ten_processes_that_start_on_a_new_store_all_log_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    errors = []
    for process in processes:
        assert process.stdin
        process.stdin.close()
    for process in processes:
        assert process.stderr
        errors += [process.stderr.read()] if process.wait(timeout=300) else []
        process.stderr.close()
    assert errors == []
    runs = connect(uri).search_runs(["0"])
    assert [run.data.metrics["loss"] for run in runs] == [1.0] * 10


def broken(path: Path) -> str:
    """A store as two simultaneous migrations leave it: half of its tables, and a temporary table of Alembic's."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE _alembic_tmp_tags (key VARCHAR)")
        connection.commit()
    return f"sqlite:///{path}"


def test_a_store_broken_during_creation_is_reported_and_may_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = broken(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match=r"_alembic_tmp_tags already exists") as refused:
        check_server(uri)
    assert f"delete {tmp_path / 'mlflow.db'} and try again" in refused.value.hint
    (tmp_path / "mlflow.db").unlink()  # as the hint says; this process still has the removed file open
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    subprocess.run([sys.executable, "-c", OPEN], check=True, stdin=subprocess.DEVNULL)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_an_interrupted_migration_is_repaired_by_following_the_hint(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    engine = create_sqlalchemy_engine(uri)
    InitialBase.metadata.create_all(engine)
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    config.set_main_option("sqlalchemy.url", uri)
    command.upgrade(config, "2d6e25af4d3e")  # of MLflow 2.16; the next one recreates the table of tags
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (0, 'Default', 'active')"
        )
        connection.execute(
            "INSERT INTO runs (run_uuid, experiment_id, status, user_id, lifecycle_stage, name, source_type, "
            "start_time) VALUES ('abc', 0, 'FINISHED', 'me', 'active', 'first', 'LOCAL', 1)"
        )
        connection.commit()
    broken(path)
    with pytest.raises(TrackingError, match="_alembic_tmp_tags already exists") as refused:
        check_server(uri)
    repair = re.fullmatch(r'a migration .* Back up .*; then sqlite3 .* "(.*)", then mlflow (.*)', refused.value.hint)
    assert repair
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(repair[1])
    subprocess.run([sys.executable, "-m", "mlflow", *repair[2].split()], check=True, capture_output=True)
    assert connect(uri).get_run("abc").info.status == "FINISHED"


def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("rows, not tables\n" * 100)
    with pytest.raises(TrackingError, match="is not an SQLite database"):
        check_server(f"sqlite:///{path}")
    assert path.read_text().startswith("rows")


def test_a_lock_held_for_too_long_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_store, "PATIENCE_SECONDS", 0.1)
    with local_store.FileLock(tmp_path / ".mlflow.db.lock"), pytest.raises(TrackingError, match="another process"):
        check_server(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_the_client_is_of_the_store_that_is_named(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    client = connect(uri)
    assert isinstance(client, MlflowClient)
    assert client.tracking_uri == uri
