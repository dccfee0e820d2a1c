"""A disk that fills up in the middle of a run: once there is room, the run continues."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import Rig
from tests.faults.test_killed import check
from tests.small_disk import mounted, resize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that can be made smaller and larger."""
    with mounted(tmp_path / "disk", "1g") as folder:
        yield folder


@pytest.mark.fault("a disk that fills up in the training")
@pytest.mark.long
@pytest.mark.parametrize("kilobytes", [100, 600, 1200])
def test_a_run_whose_disk_fills_up(rig: Rig, disk: Path, kilobytes: int) -> None:
    started = rig.start(rig.training(model_name=f"disk{kilobytes}", **{"run.output_dir": disk}))
    started.until(lambda timeline: any(text.startswith("rehearse") for _, text in timeline))
    used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True, check=True).stdout.split()[0])
    resize(disk, f"{used + kilobytes}k")
    code = started.wait()
    run = rig.latest()
    resize(disk, "1g")
    if code:
        assert (code, run.info.status) == (2, "FAILED"), started.text
        assert "no space is left" in run.data.tags["mlflow_ft.error"]
        rig.finish(rig.command("resume", run.info.run_id))
    check(rig, rig.facts(rig.client.get_run(run.info.run_id)))
