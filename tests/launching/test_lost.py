"""What rank 0 learns of a process that ended before its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from mlflow_ft import processes
from mlflow_ft.engine import ranks
from mlflow_ft.errors import DataError, StoppedError
place = processes.place()
how, file = sys.argv[1], Path(sys.argv[2])
if how == "killed":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's own, which may come as soon as the other has died
ranks.join(place, join_minutes=1, timeout_minutes=1)
if place.leads:
    file.with_name("joined").touch()
    if how == "killed":
        looked, look = [], ranks._end_of
        def stopped(peer):
            looked.append(peer)
            if len(looked) == 1:
                while not peer.gone:
                    time.sleep(0.1)
                raise StoppedError(15)
            return look(peer)
        ranks._end_of = stopped
    lost = ranks.lost(StoppedError(15) if how == "stops" else RuntimeError("the connection was closed"))
    file.write_text(str(lost))
elif how == "killed":
    while not file.with_name("joined").exists():  # rank 0 may be connecting yet
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
else:
    ranks.report_end(DataError("the training rows differ") if how == "fails" else StoppedError(15))
    while not file.exists():
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fails", "failed: DataError: the training rows differ"),
        ("stops", "None"),
        ("killed", "died without an error of its own"),
    ],
)
def test_an_error_of_another_process_is_named_and_a_stop_is_none(tmp_path: Path, how: str, words: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(tmp_path / "script.py"), how, str(tmp_path / "lost.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == (how != "killed"), done.stderr
    assert words in (tmp_path / "lost.txt").read_text()
