"""A stage's folder is complete only if it has a `done.json`, which is written last by an atomic rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mlflow_ft import disk

NAME = "done.json"
Value = TypeVar("Value")


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Mark a stage's folder complete, and write the stage's result into it."""
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / NAME, result)


def keep(folder: Path, value: Any) -> None:
    """Mark a stage's folder complete, with a value of `values/`, which `kept` reads."""
    finish(folder, plain(value))


def plain(value: Any) -> Any:
    """A value of dataclasses as JSON's types, from which pydantic makes it again."""
    return TypeAdapter(type(value)).dump_python(value, mode="json", fallback=str)


def kept(folder: Path, kind: type[Value]) -> Value | None:
    """The value of a complete stage; None if the stage did not finish."""
    content = result(folder)
    if content is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError:  # of an earlier version
        return None


def reopen(folder: Path) -> None:
    """Mark a stage's folder incomplete."""
    (folder / NAME).unlink(missing_ok=True)


def result(folder: Path) -> dict[str, Any] | None:
    """The result of a complete stage; None if the stage did not finish."""
    file = folder / NAME
    return json.loads(file.read_text()) if file.is_file() else None
