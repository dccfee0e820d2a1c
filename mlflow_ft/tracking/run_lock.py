"""A lock that gives a run's folder to one process at a time."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from mlflow_ft.errors import TrackingError

LOCK_FILE = "run.lock"
"""Held by the process that works on the run; the operating system releases it when that process ends."""


def acquired(folder: Path, run_id: str) -> BaseFileLock:
    """Take the lock of a run's folder.

    Raises:
        TrackingError: another process has it.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise TrackingError(
            f"another process is working on run {run_id} in {folder}", hint="wait for it to end, or stop it"
        ) from error
    return lock
