"""The points that a run's curves have already: a resumed training does not log them a second time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from mlflow import MlflowClient

from mlflow_ft.tracking import curves
from mlflow_ft.tracking.server import told


def of_run(client: MlflowClient, run_id: str, journal: Path) -> Mapping[str, Collection[int]]:
    """The steps of every metric, in the store or in the run's journal on this machine.

    Raises:
        TrackingError: the server does not answer.
    """
    with told(f"read the metrics of run {run_id}"):
        stored = curves.recorded(client, client.get_run(run_id))
    steps: dict[str, set[int]] = defaultdict(set)
    for points in (stored, curves.journalled(journal)):
        for key, values in points.items():
            steps[key].update(values)
    return steps
