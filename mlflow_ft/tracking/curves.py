"""The curves of a run, as the server has them and as the journal on disk has them: the same numbers bit for bit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft.tracking.delivery import JOURNAL_FILE

Curves = Mapping[str, Mapping[int, float]]
"""By metric, the value at each step."""


def recorded(client: MlflowClient, run: Run, *, prefixes: Collection[str]) -> Curves:
    """The whole history of every metric whose name begins with one of the prefixes."""
    names = sorted(name for name in run.data.metrics if name.startswith(tuple(prefixes)))
    return {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in names
    }


def journalled(folder: Path, *, prefixes: Collection[str]) -> Curves:
    """The same from the journal in a run's folder, which has everything even if the server was away."""
    curves: dict[str, dict[int, float]] = {}
    with (folder / JOURNAL_FILE).open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["key"].startswith(tuple(prefixes)):
                curves.setdefault(entry["key"], {})[entry["step"]] = float(entry["value"])
    return curves
