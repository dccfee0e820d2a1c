"""Real sweeps of a tiny model: what they leave in MLflow, and how they continue after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft import pipeline, plugins, tracking
from mlflow_ft.cli import sweeps
from mlflow_ft.errors import ConfigError, FineTuneError, StoppedError
from mlflow_ft.operations.sweeping import study as studies
from mlflow_ft.progress import Progress
from tests.operations.sweeping.conftest import InThread, Sweep

QUIET = Progress(quiet=True)
RATES = "training.learning_rate: [1e-8, 1e-2, 3e-2]"
"""Drawn in the order 1e-2, 1e-8, 3e-2: that is the seed's."""


def trials(client: MlflowClient, parent: str) -> list[Run]:
    runs = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(runs, key=lambda run: int(run.data.tags["mlflow_ft.trial"]))


def has_weights(run: Run) -> bool:
    return any(Path(run.data.tags["mlflow.mlflow_ft.folder"], "train").rglob("*.safetensors"))


def interrupting(name: str) -> type[InThread]:
    """Stops the sweep when it starts this trial, whose run it has created."""

    class Interrupting(InThread):
        def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
            if arguments[3] == name:
                raise StoppedError(signal.SIGTERM)
            super().__init__(arguments, variables)

    return Interrupting


def test_a_sweep_is_interrupted_resumed_and_registers_its_best_trial_alone(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "STARTUP_TRIALS", 1)
    client = MlflowClient()
    with pytest.raises(StoppedError) as stopped:
        sweep(RATES, start=interrupting("2"))
    (parent,) = client.search_runs(["0"], "tags.mlflow_ft.method = 'sweep lora'")
    assert parent.info.status == "KILLED"
    assert f"mlflow-ft resume {parent.info.run_id}" in str(stopped.value)
    before = trials(client, parent.info.run_id)
    assert len(before) == 3
    assert client.search_model_versions() == []

    outcome = sweep(RATES, "--run.resume=auto")
    assert outcome.run_id == parent.info.run_id
    children = trials(client, outcome.run_id)
    assert [run.info.run_id for run in children] == [run.info.run_id for run in before]
    assert [run.info.end_time for run in children[1:2]] == [run.info.end_time for run in before[1:2]]
    assert client.get_run(outcome.run_id).info.status == "FINISHED"
    assert [run.info.status for run in children] == ["FINISHED", "KILLED", "FINISHED"]
    assert [row["state"] for row in outcome.trials] == ["complete", "pruned", "complete"]
    assert [run.info.run_name for run in children] == ["trial-0", "trial-1", "trial-2"]
    check_best(client, outcome.run_id, children, outcome.best_run_id)

    pruned = children[1].info.run_id
    assert "worse than the median" in children[1].data.tags["mlflow_ft.pruned"]
    assert "eval/tuned/loss" not in children[1].data.metrics
    with pytest.raises(ConfigError, match="is a trial of the sweep"):
        pipeline.resume(pruned, plugins.load(), progress=QUIET)
    with pytest.raises(ConfigError, match="was pruned"):
        pipeline.resume(pruned, plugins.load(), only_package=True, progress=QUIET)
    with pytest.raises(ConfigError, match="is FINISHED"):
        sweeps.resume(outcome.run_id, (), progress=QUIET)


def check_best(client: MlflowClient, parent: str, children: list[Run], best: str) -> None:
    """The versions, the alias, the weights and the sweep's own artifacts are those of the best trial."""
    scores = {run.info.run_id: run.data.metrics["eval/tuned/loss"] for run in children if run.info.status == "FINISHED"}
    assert best == min(scores, key=lambda run_id: scores[run_id])
    versions = client.search_model_versions()
    assert sorted(version.name for version in versions) == ["tiny-lora", "tiny-lora-adapter"]
    assert {version.run_id for version in versions} == {best}
    assert client.get_model_version_by_alias("tiny-lora", "candidate").run_id == best
    assert [run.info.run_id for run in children if has_weights(run)] == [best]
    table = tracking.read_json(parent, "sweep/trials.json")
    assert len(table["data"]) == len(children)
    assert "sweep/parallel-coordinates.svg" in {entry.path for entry in client.list_artifacts(parent, "sweep")}
    run = client.get_run(parent)
    assert run.data.metrics["sweep/best"] == scores[best]
    assert run.data.tags["mlflow_ft.best_trial"] == best
    assert "optimistic" in run.data.tags["mlflow.note.content"]


def test_a_sweep_whose_first_trials_all_fail_ends_with_their_error(sweep: Sweep) -> None:
    with pytest.raises(
        FineTuneError, match=r"3 trials failed one after the other; .*good_loss: no evaluator returns this score"
    ):
        sweep("adapter.r: [1, 2, 3, 4]", objective="good_loss")
    runs = MlflowClient().search_runs(["0"])
    assert [run.info.status for run in runs] == ["FAILED"] * 4
    assert not any("train/steps" in run.data.metrics for run in runs)


def test_a_trial_whose_process_dies_is_not_left_running(sweep: Sweep) -> None:
    class Dying(InThread):
        def _run(self) -> None:
            self._code = -9

    with pytest.raises(FineTuneError, match=r"no trial is complete, so nothing was registered; .*exit code -9"):
        sweep("adapter.r: [1, 2]", start=Dying)
    client = MlflowClient()
    (parent,) = client.search_runs(["0"], "tags.mlflow_ft.method = 'sweep lora'")
    assert parent.info.status == "FAILED"
    assert [run.info.status for run in trials(client, parent.info.run_id)] == ["KILLED", "KILLED"]
