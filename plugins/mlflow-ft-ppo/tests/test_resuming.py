"""A training that was stopped and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mlflow_ft.engine.checkpoints import folder, keeper
from mlflow_ft.values import Resume


def weights(trial):
    files = sorted((trial.job.folder / "train").glob("*/*.safetensors"))
    files.append(trial.job.folder / "train" / "value_head.safetensors")
    return {f"{file.name}/{name}": weight for file in files for name, weight in load_file(file).items()}


def points(trial):
    return [point for point in trial.run.points if "per_second" not in point[0] and "step_time" not in point[0]]


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_iterations": 2, "objective.options": "{num_mini_batches: 2, kl_target: 1.0}"}, id="lora"),
        pytest.param({"adapter.kind": "none", "logging_steps": 2, "beta": 0.1}, id="full"),
    ],
)
def test_the_same_bits(bench, settings, step):
    common = {"max_steps": 5, "eval_steps": 2, "learning_rate": 1e-3, **settings}
    whole, parts = bench(**common), bench(**common)
    whole.train()
    parts.run.stop_after = step
    parts.train()
    shutil.rmtree(parts.job.folder / "train" / "adapter", ignore_errors=True)
    shutil.rmtree(parts.job.folder / "train" / "model", ignore_errors=True)
    parts.run.stop_after = None
    checkpoint = folder.latest(keeper.place(parts.job), print)
    assert checkpoint is not None
    again = replace(parts, job=replace(parts.job, resume=Resume(checkpoint=checkpoint)))
    again.train()
    expected, actual = weights(whole), weights(again)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert points(whole) == points(again)
    assert json.loads(again.run.tables[f"resume/{checkpoint.name}.json"])["equal"]
