"""Whether a database or a folder that this process opens itself can be written, without leaving anything there."""

from __future__ import annotations

import sqlite3
import tempfile
import uuid
from contextlib import ExitStack, closing
from pathlib import Path

from filelock import FileLock
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from mlflow_ft.errors import TrackingError, brief
from mlflow_ft.tracking import local_store
from mlflow_ft.tracking.server import PROBE_SECONDS, Service, shown, sqlite_file

DATABASES = ("postgresql", "mysql")
LOCKED_SECONDS = 10.0
"""How long to wait for another process to finish writing to an SQLite store."""
OPTIMISTIC = "UPDATE {table} SET name = name WHERE 1 = 0"
"""Needs the right to write, and a database that is not read-only; changes nothing."""


def exists(uri: str) -> bool:
    """Whether a store has MLflow's tables already; True for a store that is not an SQLite file."""
    file = sqlite_file(uri)
    if file is None:
        return True
    if not file.is_file() or not file.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
            return bool(connection.execute(query).fetchone()[0])
    except sqlite3.Error:
        return True  # reported when it is opened


def check_sqlite(file: Path, uri: str, service: Service) -> str:
    elsewhere = f"or set {service.variable} to another file"
    if not exists(uri):
        check_folder(file.parent, f"the folder {file.parent} of {shown(uri)}", hint=f"make it writable, {elsewhere}")
        return f"{shown(uri)}, which is new"
    with ExitStack() as held:
        if (lock := local_store.lock_of(file)).exists():  # another process may be creating the tables
            held.enter_context(FileLock(lock, timeout=local_store.PATIENCE_SECONDS))
        try:
            with closing(sqlite3.connect(file, timeout=LOCKED_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"CREATE TABLE preflight_{uuid.uuid4().hex} (x)")
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise TrackingError(
                    f"{shown(uri)} is locked: another process has been writing to it for {LOCKED_SECONDS:.0f} seconds",
                    hint=f"end that process (`fuser {file}` names it), {elsewhere}",
                ) from error
            hint = f"make it writable, {elsewhere}"
            if "not a database" in str(error) or "malformed" in str(error):
                hint = local_store.remedy(file, uri)
            raise TrackingError(f"{shown(uri)} cannot be written: {error}", hint=hint) from error
        local_store.open_store(file, uri)
    return f"{shown(uri)} accepts writes"


def check_database(uri: str, service: Service, *, table: str) -> str:
    try:
        engine = create_engine(uri, poolclass=NullPool, connect_args={"connect_timeout": int(PROBE_SECONDS)})
        with closing(engine.connect()) as connection, connection.begin() as transaction:
            if not inspect(connection).has_table(table):
                return f"{shown(uri)}, which has no tables of MLflow yet"
            connection.execute(text(OPTIMISTIC.format(table=table)))
            transaction.rollback()
    except (SQLAlchemyError, ImportError) as error:
        raise TrackingError(
            f"{shown(uri)} cannot be written: {brief(error)}",
            hint=f"check the user's rights, or set {service.variable} to another database",
        ) from error
    return f"{shown(uri)} accepts writes"


def check_folder(folder: Path, what: str, *, hint: str) -> None:
    """Raise if no file can be written into a folder, or the folder cannot be made."""
    place = folder.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as reason:
        raise TrackingError(f"cannot write under {what}: {reason.strerror}", hint=hint) from reason


def local_folder(uri: str) -> Path | None:
    """The folder that a URI or a path names on this machine; None if it is elsewhere."""
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None
