"""Environment variables for the duration of a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""MLflow prints the address of a run that ends, but stdout may be read by a program."""
REPEATS = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_repeats: list[str | None] = []
"""The values of MLFLOW_HTTP_REQUEST_MAX_RETRIES before each open `without_repeats`, the user's first."""
_repeats_lock = threading.Lock()


@contextmanager
def overriding(environ: MutableMapping[str, str], values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the duration of a block."""
    before = {name: environ.get(name) for name in values}
    environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


@contextmanager
def without_repeats() -> Iterator[None]:
    """Inside the block, MLflow's client makes each request once.

    It would otherwise repeat a request whose answer was lost, also one that creates something, which then exists twice.
    """
    with _repeats_lock:
        _repeats.append(os.environ.get(REPEATS))
        os.environ[REPEATS] = "0"
    try:
        yield
    finally:
        with _repeats_lock:
            before = _repeats.pop()
            if before is None and not _repeats:
                os.environ.pop(REPEATS, None)
            elif before is not None:
                os.environ[REPEATS] = before
