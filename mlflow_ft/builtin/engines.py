"""The data engine of one machine: this process, and for many rows others beside it."""

from __future__ import annotations

from mlflow_ft import Engine, hookimpl


@hookimpl
def register_engines() -> list[Engine]:
    return [Engine(name="local", summary="this machine: one process, and for many rows one for each core")]
