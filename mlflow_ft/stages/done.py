"""A stage's folder is complete only if it has a `done.json`, which is written last by an atomic rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_ft import disk

NAME = "done.json"


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Mark a stage's folder complete, and write the stage's result into it."""
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / NAME, result)


def result(folder: Path) -> dict[str, Any] | None:
    """The result of a complete stage; None if the stage did not finish."""
    file = folder / NAME
    return json.loads(file.read_text()) if file.is_file() else None
