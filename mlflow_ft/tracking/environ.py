"""Environment variables for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""MLflow prints the address of a run that ends, but stdout may be read by a program."""


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
