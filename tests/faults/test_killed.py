"""SIGKILL at any moment of a run: resumed, it ends as if nothing had happened."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import Moment, Rig

POINTS, SEED = 50, 11


def after(rig: Rig, line: str, *, seconds: float = 0.0) -> Moment:
    """The moment after a whole run has printed a line that begins with a text."""
    lines = next(number for number, (_, text) in enumerate(rig.whole.timeline, start=1) if text.startswith(line))
    return Moment(lines=lines, seconds=seconds, stage=line)


def resumed(rig: Rig, moment: Moment, *, auto: bool, number: int = signal.SIGKILL) -> dict[str, Any]:
    """Interrupt a run and continue it, by its id or by the same command; returns what it left."""
    before = {run.info.run_id for run in rig.runs()}
    asked = {"resume": "auto", "model_name": f"m{len(before)}"}
    rig.start(rig.training(**asked)).interrupt(moment, number)
    ours = [run for run in rig.runs() if run.info.run_id not in before]
    recorded = ours and "mlflow.mlflow_ft.config_key" in ours[0].data.tags
    if recorded and ours[0].info.status == "FINISHED":  # it was faster than the signal
        return rig.facts(ours[0])
    again = rig.training(**asked) if auto or not recorded else rig.command("resume", ours[0].info.run_id)
    rig.finish(again)
    run = rig.client.get_run(ours[0].info.run_id) if recorded else rig.latest()
    assert all(comparison["equal"] for comparison in rig.comparisons(run))
    finished = [run for run in rig.runs() if run.info.run_id not in before]
    assert [run.info.status for run in finished].count("FINISHED") == 1
    return rig.facts(run)


def check(rig: Rig, facts: dict[str, Any]) -> None:
    names = [name.replace(facts["versions"][0], rig.whole.facts["versions"][0]) for name in facts["versions"]]
    assert facts | {"versions": names} == rig.whole.facts


@pytest.mark.fault("SIGKILL at a random moment of a run")
@pytest.mark.long
@pytest.mark.parametrize("point", range(POINTS))
def test_a_run_killed_at_any_moment(rig: Rig, point: int) -> None:
    moment = rig.moments(POINTS, seed=SEED)[point]
    check(rig, resumed(rig, moment, auto=point % 2 == 0))


@pytest.mark.fault("SIGKILL in a stage of a run")
@pytest.mark.parametrize(
    ("line", "auto"),
    [
        pytest.param("train ...", True, id="training", marks=pytest.mark.long),
        pytest.param("compare merged", False, id="packaging"),
        pytest.param("log adapter", False, id="logging a model", marks=pytest.mark.long),
        pytest.param("loss of base", False, id="evaluation", marks=pytest.mark.long),
        pytest.param("load model", True, id="loading", marks=pytest.mark.long),
    ],
)
def test_a_run_killed_in_a_stage(rig: Rig, line: str, auto: bool) -> None:  # noqa: FBT001  # a parameter
    check(rig, resumed(rig, after(rig, line), auto=auto))


@pytest.mark.fault("SIGTERM in the training, folder lost: resumed from the store alone")
@pytest.mark.long
def test_a_run_stopped_and_resumed_elsewhere(rig: Rig, tmp_path: Path) -> None:
    moment = after(rig, "train ...", seconds=0.2)
    started = rig.start(rig.training(model_name="moved"))
    assert started.interrupt(moment, signal.SIGTERM) == 143, started.text
    run = rig.latest()
    assert (run.info.status, f"mlflow-ft resume {run.info.run_id}" in started.text) == ("KILLED", True)
    Path(run.data.tags["mlflow.mlflow_ft.folder"]).rename(tmp_path / "lost")
    rig.finish(rig.command("resume", run.info.run_id))
    check(rig, rig.facts(rig.client.get_run(run.info.run_id)))


@pytest.mark.fault("`mlflow run` killed")
@pytest.mark.long
def test_a_run_whose_launcher_was_killed(rig: Rig, tmp_path: Path) -> None:
    """The child notices, saves a checkpoint, and ends KILLED; the resumed run ends as if nothing had happened."""
    launcher = tmp_path / "mlflow"
    launcher.write_text("import subprocess, sys\nsys.exit(subprocess.run(sys.argv[3:]).returncode)\n")
    run_id = rig.client.create_run("0").info.run_id
    words = [sys.executable, str(launcher), "run", ".", *rig.training(model_name="launched")]
    started = rig.start(words, MLFLOW_RUN_ID=run_id)
    started.interrupt(after(rig, "load model", seconds=0))
    started.reader_ends()
    assert rig.client.get_run(run_id).info.status == "KILLED", started.text
    rig.finish(rig.command("resume", run_id))
    check(rig, rig.facts(rig.client.get_run(run_id)))
