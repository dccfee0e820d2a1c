"""Sweeps whose trials run in this process: starting Python and importing torch takes longer than such a trial."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import cli
from mlflow_ft.cli import sweeps
from mlflow_ft.errors import FineTuneError
from mlflow_ft.operations.sweeping.sweep import SweepOutcome
from mlflow_ft.progress import Progress


class InThread:
    """A command in a thread of this process, which has no active MLflow run of its own."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._arguments, self._code = list(arguments), None
        os.environ["MLFLOW_RUN_ID"] = variables["MLFLOW_RUN_ID"]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            cli.cli.main(self._arguments, standalone_mode=False)
            self._code = 0
        except FineTuneError as error:
            self._code = error.exit_code
        except BaseException:
            self._code = 1
            raise
        finally:
            os.environ.pop("MLFLOW_RUN_ID", None)

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else self._code

    def send_signal(self, number: int) -> None:
        """Nothing: the tests that send signals use processes."""


Sweep = Callable[..., SweepOutcome]


@pytest.fixture
def quick(tracking_store: str, tiny_model: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A method and settings with which a trial takes about a second."""
    monkeypatch.setenv("MLFLOW_FT_PLUGINS", "")
    settings: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2}
    settings |= {"package.round_trip": "false", "evaluation.samples": 0, "evaluation.on_worse": "warn"}
    settings |= {"model": tiny_model, "data": tiny_rows}
    return ["lora", *(f"--{name}={value}" for name, value in settings.items())]


@pytest.fixture
def sweep(quick: list[str], tmp_path: Path) -> Sweep:
    """`sweep("adapter.r: [2, 4]", budget="3")` runs the sweep of this space."""

    def run(space: str, *more: str, start: Any = InThread, **options: Any) -> SweepOutcome:
        file = tmp_path / "space.yaml"
        file.write_text(space)
        asked = sweeps.Asked(sweep=str(file), **options)
        return sweeps.begin([*quick, *more], asked, Progress(quiet=True), start=start)

    return run
