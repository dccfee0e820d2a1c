"""What the checks before a run find out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Caution:
    """What a check returns if a run may begin, but its user should know something."""

    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One check and its outcome: a line of `mlflow-ft preflight`."""

    check: str
    """What was checked: `tracking store`, or the setting: `data.path`."""
    state: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""
