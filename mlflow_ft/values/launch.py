"""What launchers get: a run to start in several processes, or the trials of a sweep to start one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of a sweep: how many run at once, and what each of them takes."""

    settings: LaunchSection
    folder: Path
    """Where the trials keep their weights and checkpoints, and the sweep looks for the best one's."""
    workers: int | None = None
    """Trials at once; None if nothing was asked for."""
    cpus: float | None = None
    """CPUs of a trial; None if nothing was asked for."""
    gpus: float | None = None
    """GPUs of a trial, or a share of one (0.5); None if nothing was asked for."""


class Process(Protocol):
    """A command that runs beside this process, here or on another machine."""

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it or its machine was lost; None while it runs."""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""


StartProcess = Callable[[Sequence[str], Mapping[str, str]], Process]
"""Starts `mlflow-ft ARGUMENTS` with these environment variables."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the trials of a sweep run."""

    start: StartProcess
    shares: Sequence[Mapping[str, str]]
    """For each trial that runs at the same time, the environment variables that give it its share of a machine; at
    least one, and possibly empty."""
