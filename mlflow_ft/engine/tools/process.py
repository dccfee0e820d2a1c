"""Run a tool's script in its own environment: its events as they come, its last lines if it fails, and its end.

The tool and everything that it starts are one process group, which never outlives the call.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.tools import inside
from mlflow_ft.errors import ProcessError, RefusedError

Event = Mapping[str, Any]
"""`event`, `step`, and what `inside` sends with it."""
LOOK_SECONDS = 0.2
LOG = "output.log"
LAST_LINES = 10
LAST_SECONDS = 1.0
"""How long the last events are waited for: something that the tool has started may hold the pipe open."""
KILLED_SECONDS = 5.0
"""How long the tool has to end after SIGTERM when the call ends with an error."""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run(
    environment: Environment,
    request: Mapping[str, Any],
    *,
    folder: Path,
    see: Callable[[Event], None],
    stopping: Callable[[], bool],
    finishing: Callable[[], bool] = lambda: False,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run `request["script"]` to its end. See `inside` for what it gets, and for what it may ask for in the request.

    Args:
        environment: the tool's.
        request: plain JSON values.
        folder: for `request.json` and `output.log`, everything that the tool prints.
        see: called with each event, in the thread of the caller; if it raises, the tool is ended.
        stopping: whether a signal was received; the tool is then told to save and end, and the call returns.
        finishing: whether the training is to end after the current step, as if that were its last.
        variables: further environment variables.

    Raises:
        ProcessError: the tool failed, with its last lines. RefusedError: it would train something else than was asked
        for.
    """
    log = folder / LOG
    process, reading = _start(environment, request, folder, log, variables or {})
    refused: list[str] = []

    def handle(event: Event) -> None:
        if event["event"] == "refused":
            refused.append(str(event["reason"]))
        else:
            see(event)

    try:
        asked = _follow(process, reading, handle, stopping=stopping, finishing=finishing)
    finally:
        end(process)
    if refused:
        raise RefusedError(
            f"{environment.name} would not train what was asked for: {refused[0]}",
            hint=f"nothing was trained; {log} has what it printed",
        )
    if process.returncode and not asked:
        raise failed(environment.name, process.returncode, log)


def _start(
    environment: Environment, request: Mapping[str, Any], folder: Path, log: Path, variables: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the tool in a session of its own; returns it and the end of the pipe that its events come out of."""
    reading, writing = os.pipe()
    written = folder / "request.json"
    written.write_text(json.dumps({**request, "events": writing, "parent": os.getpid()}), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(environment.python), str(Path(inside.__file__).resolve()), str(written)],
            cwd=folder,
            env=environment.variables({"PYTHONUNBUFFERED": "1", **variables}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    return process, reading


def _follow(
    process: subprocess.Popen[bytes],
    reading: int,
    see: Callable[[Event], None],
    *,
    stopping: Callable[[], bool],
    finishing: Callable[[], bool],
) -> bool:
    """Pass events on until the process has ended; returns whether it was stopped."""
    events: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(reading, events), daemon=True)
    reader.start()
    sent: set[int] = set()
    while True:
        try:
            line = events.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            line = ""
        if line:
            see(json.loads(line))
        elif process.poll() is not None:
            reader.join(LAST_SECONDS)
            while not events.empty():
                see(json.loads(events.get()))
            return signal.SIGTERM in sent
        for number, wanted in ((signal.SIGTERM, stopping), (signal.SIGUSR1, finishing)):
            if number not in sent and wanted():
                sent.add(number)
                process.send_signal(number)


def _read(reading: int, events: queue.SimpleQueue[str]) -> None:
    with os.fdopen(reading, encoding="utf-8") as stream:
        for line in stream:
            events.put(line)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process, if it runs, and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failed(name: str, code: int, log: Path) -> ProcessError:
    """The error for a tool that has failed, with the last lines of what it printed."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    text = COLOURS.sub("", log.read_text(encoding="utf-8", errors="replace")).replace("\r", "\n")
    last = [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
    hint = "the kernel does that when memory runs out" if code == -signal.SIGKILL else f"everything it printed: {log}"
    return ProcessError("\n".join([f"{name} {how}; its last lines:", *(f"  {line}" for line in last)]), hint=hint)
