"""The points that a run's curves have already: a resumed training does not log them a second time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from mlflow import MlflowClient

from mlflow_ft.tracking.server import told


def of_run(client: MlflowClient, run_id: str, journal: Path) -> Mapping[str, Collection[int]]:
    """The steps of every metric, in the store or in the run's journal on this machine.

    Raises:
        TrackingError: the server does not answer.
    """
    steps: dict[str, set[int]] = defaultdict(set)
    with told(f"read the metrics of run {run_id}"):
        for key in client.get_run(run_id).data.metrics:
            steps[key].update(point.step for point in client.get_metric_history(run_id, key))
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            entry = json.loads(line)
            steps[entry["key"]].add(entry["step"])
        except (ValueError, KeyError, TypeError):  # a line that a crash cut short
            continue
    return steps
