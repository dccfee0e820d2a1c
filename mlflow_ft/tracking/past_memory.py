"""What finished runs predicted and measured of their memory, from which the next estimate is calibrated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median

from mlflow import MlflowClient

from mlflow_ft.tracking.environ import overriding
from mlflow_ft.tracking.run import AT_ONCE
from mlflow_ft.tracking.server import told

PREDICTED, MEASURED = "memory/predicted_gib", "memory/measured_gib"
"""Metrics of a run: the most memory of its training, beyond what the program itself takes."""
DEVICE_TAG = "mlflow.mlflow_ft.memory_device"
"""What it was measured on: the GPU's name, or `CPU`."""
LATEST = 20
"""At most so many runs are used."""
SMALLEST = 0.25
"""GiB; in smaller runs, what libraries take for themselves counts too much."""
BOUNDS = (0.5, 2.0)
"""A calibration outside of these is no calibration but another error."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """By what to multiply an estimate, and from how many runs this is known."""

    factor: float = 1.0
    runs: int = 0

    def __str__(self) -> str:
        if not self.runs:
            return "not calibrated: no finished run"
        return f"calibrated by {self.factor:.2f}, the median of {self.runs} finished run{'s' * (self.runs > 1)}"


def calibration(experiment_id: str | None, device: str) -> Calibration:
    """The median of measured over predicted in the latest finished runs of an experiment on this kind of device.

    Raises:
        TrackingError: the store does not answer.
    """
    if experiment_id is None:
        return Calibration()
    condition = (
        f"attributes.status = 'FINISHED' and tags.`{DEVICE_TAG}` = '{device}' "
        f"and metrics.`{PREDICTED}` >= {SMALLEST} and metrics.`{MEASURED}` > 0"
    )
    with told("read the memory of finished runs"), overriding(os.environ, AT_ONCE):
        runs = MlflowClient().search_runs([experiment_id], filter_string=condition, max_results=LATEST)
    ratios = [run.data.metrics[MEASURED] / run.data.metrics[PREDICTED] for run in runs]
    if not ratios:
        return Calibration()
    least, most = BOUNDS
    return Calibration(factor=min(most, max(least, median(ratios))), runs=len(ratios))
