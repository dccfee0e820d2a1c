"""What rank 0 learns of a process that ended before its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from mlflow_ft import processes
from mlflow_ft.engine import ranks
from mlflow_ft.errors import DataError, StoppedError
place = processes.place()
ranks.join(place, join_minutes=1, timeout_minutes=1)
how, file = sys.argv[1], Path(sys.argv[2])
if place.leads:
    lost = ranks.lost(RuntimeError("the connection was closed") if how == "fails" else StoppedError(15))
    file.write_text(str(lost))
else:
    ranks.report_end(DataError("the training rows differ") if how == "fails" else StoppedError(15))
    while not file.exists():
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("how", "words"), [("fails", "failed: DataError: the training rows differ"), ("stops", "None")]
)
def test_an_error_of_another_process_is_named_and_a_stop_is_none(tmp_path: Path, how: str, words: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(tmp_path / "script.py"), how, str(tmp_path / "lost.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert words in (tmp_path / "lost.txt").read_text()
