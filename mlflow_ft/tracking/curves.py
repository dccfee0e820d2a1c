"""The curves of a run, as the server has them and as the journal on disk has them: the same numbers bit for bit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

Curves = Mapping[str, Mapping[int, float]]
"""By metric, the value at each step."""
ALL = ("",)


def recorded(client: MlflowClient, run: Run, *, prefixes: Collection[str] = ALL) -> Curves:
    """The whole history of every metric whose name begins with one of the prefixes."""
    names = sorted(name for name in run.data.metrics if name.startswith(tuple(prefixes)))
    return {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in names
    }


def journalled(journal: Path, *, prefixes: Collection[str] = ALL) -> Curves:
    """The same from a run's journal, which has everything even if the server was away; empty without one."""
    curves: dict[str, dict[int, float]] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            entry = json.loads(line)
            key, step, value = entry["key"], entry["step"], float(entry["value"])
        except (ValueError, KeyError, TypeError):  # a line that a crash cut short
            continue
        if key.startswith(tuple(prefixes)):
            curves.setdefault(key, {})[step] = value
    return curves
