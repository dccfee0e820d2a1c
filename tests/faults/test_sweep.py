"""A sweep of two workers that is killed twice ends as if nothing had happened; no trial that has ended is repeated."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.faults.rig import SETTINGS, Moment, Rig, Started

SPACE = "adapter.r: [1, 4]\ntraining.learning_rate: [1e-3, 1e-2]\n"


def sweep(rig: Rig, name: str) -> list[str]:
    (rig.folder / "space.yaml").write_text(SPACE)
    given = {key: value for key, value in SETTINGS.items() if key != "adapter.r"}
    given |= {"model": rig.model, "data": rig.rows, "model_name": name, "evaluation.samples": 0}
    options = ["--sweep", "space.yaml", "--workers", "2", "--budget", "4"]
    return rig.command("sweep", "lora", *options, *(f"--{key}={value}" for key, value in given.items()))


def trials(rig: Rig, parent: Run) -> dict[str, Run]:
    nested = [run for run in rig.runs() if run.data.tags.get("mlflow_ft.sweep") == parent.info.run_id]
    by_number = {run.data.tags["mlflow_ft.trial"]: run for run in nested}
    assert len(by_number) == len(nested), "a trial has two runs"
    return by_number


def scores(rig: Rig, parent: Run) -> dict[tuple[str, str], float]:
    return {
        (run.data.params["cfg.adapter.r"], run.data.params["cfg.training.learning_rate"]): run.data.metrics[
            "eval/tuned/loss"
        ]
        for run in trials(rig, parent).values()
    }


def ended(started: Started, number: int) -> None:
    """Wait until so many trials are complete."""
    started.until(lambda timeline: sum(" complete" in line for _, line in timeline) >= number)


def parent_of(rig: Rig, before: set[str]) -> Run:
    (parent,) = [run for run in rig.runs() if run.info.run_id not in before and "mlflow_ft.study" in run.data.tags]
    return parent


@pytest.mark.fault("SIGKILL and SIGTERM in a sweep of two workers")
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_sweep_killed_twice_repeats_nothing(rig: Rig) -> None:
    rig.finish(sweep(rig, "whole"))
    whole = parent_of(rig, set())
    before = {run.info.run_id for run in rig.runs()}

    started = rig.start(sweep(rig, "killed"))
    ended(started, 1)
    started.interrupt(Moment(lines=0, seconds=0, stage="trials"), signal.SIGKILL)
    parent = parent_of(rig, before)
    first = {number: run.info.end_time for number, run in trials(rig, parent).items() if run.info.status == "FINISHED"}
    assert first

    started = rig.start(rig.command("resume", parent.info.run_id))
    ended(started, 1)
    assert started.interrupt(Moment(lines=0, seconds=0, stage="trials"), signal.SIGTERM) == 143, started.text
    assert rig.client.get_run(parent.info.run_id).info.status == "KILLED"
    assert "RUNNING" not in {run.info.status for run in trials(rig, parent).values()}

    rig.finish(rig.command("sweep", "--resume", parent.info.run_id))
    runs = trials(rig, parent)
    assert rig.client.get_run(parent.info.run_id).info.status == "FINISHED"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    best = rig.client.get_run(parent.info.run_id).data.tags["mlflow_ft.best_trial"]
    assert {number: runs[number].info.end_time for number in first if runs[number].info.run_id != best} == {
        number: time for number, time in first.items() if runs[number].info.run_id != best
    }
    assert scores(rig, parent) == scores(rig, whole)
    assert len(runs) == 4
    assert {version.run_id for version in rig.client.search_model_versions("name = 'killed'")} == {best}
    assert Path(rig.client.get_run(parent.info.run_id).data.tags["mlflow_ft.study"]).parent == rig.folder / "sweeps"
