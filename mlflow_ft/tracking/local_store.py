"""Let only one process at a time create a local SQLite store: two migrating it at once corrupt it for good.

MLflow creates the tables of a new store when it is first opened, step by step, without a lock. Processes that start
together fail on each other's incomplete tables and leave a store that cannot be opened.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from mlflow_ft.errors import TrackingError, brief

PATIENCE_SECONDS = 300.0
"""How long to wait for another process to create the tables, which takes seconds."""
CHATTY = ("alembic", "mlflow.store.db.utils")
"""Loggers that report every step of a migration."""
HALF_MADE = "_alembic_tmp_"
"""Prefix of the tables that an interrupted migration leaves."""
CONTENTS = ("runs", "registered_models", "logged_models", "datasets")


@cache
def prepare(path: Path, uri: str) -> None:
    """Create or migrate the tables of the SQLite store at `path`, once per process, while other processes wait.

    Raises:
        TrackingError: the store is incomplete or damaged (the hint says how to repair it), or another process has
        been creating it for minutes.
    """
    lock = lock_of(path)
    try:
        with FileLock(lock, timeout=PATIENCE_SECONDS):
            open_store(path, uri)
    except Timeout as error:
        raise TrackingError(
            f"{uri}: another process has held {lock} for {PATIENCE_SECONDS:.0f} seconds",
            hint="wait for it to end, or stop it; then try again",
        ) from error


def lock_of(path: Path) -> Path:
    """The lock that a process holds while it creates the tables."""
    return path.with_name(f".{path.name}.lock")


def open_store(path: Path, uri: str) -> None:
    """Open the store with MLflow, which creates or migrates its tables.

    Raises:
        TrackingError: the store is incomplete or damaged.
    """
    try:
        with _quiet():
            client = MlflowClient(uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:  # errors of sqlite3, SQLAlchemy, Alembic and MLflow, which share no base class
        raise TrackingError(f"{uri} cannot be opened: {brief(error)}", hint=remedy(path, uri)) from error


def remedy(path: Path, uri: str) -> str:
    """How to repair a store that MLflow cannot open, depending on the file's contents."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {str(name) for (name,) in connection.execute(query)}
            filled = [name for name in CONTENTS if name in tables and _rows(connection, name)]
    except sqlite3.Error as error:
        return f"{path} is not an SQLite database ({error}): name another file in MLFLOW_TRACKING_URI"
    left = sorted(name for name in tables if name.startswith(HALF_MADE))
    if not filled:
        return f"two processes may have created it at once; it has no runs or models: delete {path} and try again"
    drop = " ".join(f"DROP TABLE {name};" for name in left)
    repair = f'sqlite3 {path} "{drop}", then ' if left else ""
    return f"a migration was interrupted. Back up {path}; then {repair}mlflow db upgrade {uri}"


def _rows(connection: sqlite3.Connection, table: str) -> bool:
    assert table in CONTENTS
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None  # noqa: S608  # a constant


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the migration's log messages off the terminal."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
