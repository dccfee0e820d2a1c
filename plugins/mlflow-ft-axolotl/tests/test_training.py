"""Axolotl itself, in the environment that the plugin makes: its losses are ours."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mlflow import MlflowClient

SETTINGS = {
    "max_steps": 8,
    "eval_steps": 4,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "adapter.r": 8,
}
MOST = 1e-5
"""Largest relative difference between two losses: rounding."""


@pytest.fixture
def registry():
    """The registry of packages, without which nothing can be installed."""
    asked = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "fire"], capture_output=True, check=False)
    if asked.returncode:
        pytest.skip("no package registry answers")


def curve(run_id, key):
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, key)]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_its_losses_are_ours_and_its_adapter_is_registered(registry, tiny_model, tiny_rows, fine_tune):
    theirs, ours = (fine_tune(name, model=tiny_model, data=tiny_rows, **SETTINGS) for name in ("axolotl-lora", "lora"))
    assert len(theirs.versions) == len(ours.versions) == 2
    for key in ("train/loss", "train/learning_rate", "eval/loss"):
        found, wanted = dict(curve(theirs.run_id, key)), dict(curve(ours.run_id, key))
        assert found.keys() == wanted.keys()
        for step, value in wanted.items():
            assert found[step] == pytest.approx(value, rel=MOST), (key, step)
    assert dict(curve(theirs.run_id, "train/tool_kl"))[0] < 1e-6
