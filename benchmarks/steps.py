"""A plugin with the callback of `measured`, for this project's side of `benchmarks/train.py`."""

from __future__ import annotations

from typing import Any

from benchmarks import measured
from mlflow_ft import hookimpl


@hookimpl
def training_callbacks() -> list[Any]:
    return [measured.callback()]
