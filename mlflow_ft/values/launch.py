"""What a launcher gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_ft.config.launch import LaunchSection


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run to start in several processes."""

    settings: LaunchSection
    request: str
    """What to run, as JSON, for `mlflow_ft.launched`."""
    processes: int
    """How many processes there are, on all machines together."""


def result_file(request: Path) -> Path:
    """The file in which rank 0 writes its result, beside the file with the request."""
    return request.with_name(f"{request.name}.result")
