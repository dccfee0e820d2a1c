"""A tool's process: its events, its end, its failure, and the end of all that it started."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.tools import inside, process
from mlflow_ft.errors import ProcessError, RefusedError

HERE = Environment(name="sometool", python=Path(sys.executable), packages={})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Any]]:
    """Run a script as a tool; returns its events."""

    def call(text: str, *, stopping: Callable[[], bool] = lambda: False, see: Any = None) -> list[Any]:
        (tmp_path / "script.py").write_text(REPORTER + textwrap.dedent(text))
        events: list[Any] = []
        request = {"script": str(tmp_path / "script.py"), "number": 7}
        process.run(HERE, request, folder=tmp_path, see=see or events.append, stopping=stopping)
        return events

    return call


REPORTER = """
import os, json, signal, subprocess, sys, time
from pathlib import Path
def send(event, **values):
    os.write(request["events"], (json.dumps({"event": event, **values}) + "\\n").encode())
"""


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":  # ended; nobody has asked for its exit code yet
            return True
        time.sleep(0.05)
    return False


def test_events_come_in_order_and_the_script_gets_the_request(run: Any) -> None:
    events = run('[send("log", step=n, number=request["number"]) for n in range(3)]')
    assert [(event["step"], event["number"]) for event in events] == [(0, 7), (1, 7), (2, 7)]


def test_events_are_passed_on_while_the_tool_works(run: Any) -> None:
    seen: list[float] = []
    began = time.monotonic()
    run('send("log", step=1); time.sleep(2)', see=lambda event: seen.append(time.monotonic()))
    assert time.monotonic() - seen[0] > 1.5, "it came only when the tool had ended"
    assert seen[0] > began


def test_a_failure_is_told_with_the_last_lines_and_without_colours(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ProcessError) as raised:
        run('[print("line", n) for n in range(50)]; sys.stderr.write("\\x1b[31mCUDA error\\x1b[0m\\n"); sys.exit(3)')
    assert "sometool ended with exit code 3" in str(raised.value)
    assert "\n  CUDA error\n" in str(raised.value)
    assert "line 49" in str(raised.value)
    assert "line 30" not in str(raised.value)
    assert "line 30" in (tmp_path / "output.log").read_text()


def test_a_tool_that_is_killed_is_no_success(run: Any) -> None:
    with pytest.raises(ProcessError, match="sometool was killed by SIGKILL"):
        run("os.kill(os.getpid(), signal.SIGKILL)")


def test_a_refusal_comes_with_its_reason(run: Any) -> None:
    with pytest.raises(RefusedError, match="sometool would not train what was asked for: it has other rows"):
        run('send("refused", reason="it has other rows"); sys.exit(1)')


CHILD = """
deaf = "import signal, time; signal.signal(15, lambda *_: 0); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
send("log", step=child.pid)
"""


def test_a_signal_ends_it_and_all_that_it_started(run: Any) -> None:
    pids: list[int] = []
    run(f"{CHILD}\ntime.sleep(600)", stopping=lambda: bool(pids), see=lambda event: pids.append(event["step"]))
    assert gone(pids[0])


def test_an_error_of_ours_ends_it_and_all_that_it_started(run: Any) -> None:
    pids: list[int] = []

    def see(event: Any) -> None:
        pids.append(event["step"])
        raise RefusedError("the loss is nan")

    with pytest.raises(RefusedError, match="the loss is nan"):
        run(f"{CHILD}\ntime.sleep(600)", see=see)
    assert gone(pids[0])


def test_what_it_leaves_behind_is_ended_too(run: Any) -> None:
    (event,) = run(CHILD)
    assert gone(event["step"])


ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]


def expected(model: torch.nn.Module) -> dict[str, Any]:
    weights = {name: list(weight.shape) for name, weight in model.named_parameters()}
    return {"weights": weights, "rows": 2, "digest": inside.digest(ROWS)}


def test_the_same_rows_in_another_order_are_the_same() -> None:
    model = torch.nn.Linear(2, 3)
    assert inside.misfit(expected(model), model, ROWS[::-1]) == ""


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[:1], "its training data has 1 rows, not 2"),
        ([ROWS[0], ROWS[0]], "its training data has other tokens or labels"),
        ([ROWS[0] | {"labels": [1, 2, 3]}, ROWS[1]], "its training data has other tokens or labels"),
    ],
)
def test_other_rows_are_found(rows: Any, reason: str) -> None:
    model = torch.nn.Linear(2, 3)
    assert inside.misfit(expected(model), model, rows) == reason


def test_other_weights_are_found() -> None:
    model = torch.nn.Linear(2, 3)
    asked = expected(model)
    model.bias.requires_grad_(False)
    assert inside.misfit(asked, model, ROWS) == "it does not train bias"
    assert inside.misfit(asked | {"weights": {}}, model, ROWS) == "it trains also weight"
    asked["weights"] = {"weight": [3, 4]}
    assert inside.misfit(asked, model, ROWS) == "weight has the shape [3, 2], not [3, 4]"
