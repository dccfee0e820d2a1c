"""The heartbeat of an open run: a tag with the process that works on it and the time it was last seen alive."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil
from mlflow import MlflowClient

from mlflow_ft.tracking.server import answers

TAG = "mlflow_ft.heartbeat"
EVERY_SECONDS = 30.0
TICK_SECONDS = 2.0
CHAIN = "MLFLOW_FT_CHAIN_PID"
"""Environment variable of a stage with the process of its chain."""
AWAY_SECONDS = 900.0
"""After this long without a heartbeat a run on another machine counts as gone: an outage may last some minutes."""
log = logging.getLogger(__name__)


class Beating(Protocol):
    """What a heartbeat reports of an open run."""

    run_id: str
    tracking_uri: str
    stage: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat."""

    at: float
    """Seconds since the epoch."""
    host: str
    machine: str
    """The boot of the machine and the namespace of its process ids: within it, pid and start identify a process."""
    pid: int
    started: float
    """When the process started, in seconds since the epoch, because process ids are reused."""
    stage: str = ""
    step: int = 0
    oom_kills: int = 0
    """How many processes this machine's kernel has killed for lack of memory since it booted."""

    @classmethod
    def of_tag(cls, text: str | None) -> Beat | None:
        """The heartbeat in a run's tag; None if it has none or an unreadable one."""
        try:
            return cls(**json.loads(text or ""))
        except (TypeError, ValueError):
            return None

    @property
    def here(self) -> bool:
        """Whether the process was started on this machine, since it booted."""
        return self.machine == machine()

    def gone(self, now: float, *, away: float = AWAY_SECONDS) -> bool:
        """Whether the process has ended; on another machine, this is assumed after `away` seconds."""
        if not self.here:
            return now - self.at > away
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) > 1 or has_ended(process)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def working_on(tags: Mapping[str, str], *, away: float = AWAY_SECONDS) -> str:
    """A sentence about the process that works on a run, by the run's tags; "" if there is none (`Beat.gone`)."""
    beat, now = Beat.of_tag(tags.get(TAG)), time.time()
    if beat is None or beat.gone(now, away=away):
        return ""
    return f"process {beat.pid} on {beat.host} was working on it {max(0, now - beat.at):.0f} s ago"


def machine() -> str:
    """Which boot of which machine, and which namespace of process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, also if the one that started it has not collected it yet (a zombie).

    Raises:
        psutil.Error: the system does not say.
    """
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it booted; 0 if unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def launcher(environ: Mapping[str, str] = os.environ) -> psutil.Process | None:
    """The `mlflow run`, or the chain of jobs, that started this process, if one did."""
    with suppress(psutil.Error, ValueError):
        if CHAIN in environ:
            return psutil.Process(int(environ[CHAIN]))
        for process in psutil.Process().parents():
            words = [Path(word).name for word in process.cmdline()]
            if "mlflow" in words and words[words.index("mlflow") + 1 :][:1] == ["run"]:
                return process
    return None


class Heart(threading.Thread):
    """Writes the heartbeat every 30 seconds, and stops the process if the `mlflow run` that started it is gone.

    A server that does not answer is not waited for: the next heartbeat comes in time, or the run counts as gone.
    """

    def __init__(
        self, run: Beating, *, launched_by: psutil.Process | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(name="mlflow-ft-heartbeat", daemon=True)
        self._run, self._launched_by, self._clock = run, launched_by, clock
        self._ended = threading.Event()
        self._first = oom_kills()
        self._started_at = psutil.Process().create_time()

    def beat(self) -> None:
        """Write one heartbeat now, if the server answers."""
        if not answers(self._run.tracking_uri):
            return
        beat = Beat(
            at=self._clock(),
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            started=self._started_at,
            stage=self._run.stage,
            step=self._run.step,
            oom_kills=self._first,
        )
        MlflowClient(self._run.tracking_uri).set_tag(self._run.run_id, TAG, json.dumps(asdict(beat)))

    def run(self) -> None:
        last = self._clock()
        while not self._ended.wait(TICK_SECONDS):
            self._stop_without_launcher()
            if self._clock() - last >= EVERY_SECONDS:
                last = self._clock()
                self._try()

    def _stop_without_launcher(self) -> None:
        try:
            gone = self._launched_by is not None and has_ended(self._launched_by)
        except psutil.Error:
            return
        if gone:
            log.warning("the `mlflow run` or chain that started this process is gone: the run is stopped")
            self._launched_by = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _try(self) -> None:
        try:
            self.beat()
        except Exception as error:  # the next one may succeed; a missing heartbeat must not end a training
            log.debug("no heartbeat for run %s: %s", self._run.run_id, error)

    def begin(self) -> None:
        """Write the first heartbeat, and start."""
        self._try()
        self.start()

    def end(self) -> None:
        """Stop, and wait for a heartbeat in progress, but not for a server that is away: the run's state comes next."""
        self._ended.set()
        if self.is_alive():
            self.join(TICK_SECONDS)
