"""The processes that train one model together: ranks of torch.distributed. Alone, a process is rank 0 of 1.

Rank 0 leads: it has the MLflow run, writes to the disk, and calls the others to a task (`call`), for which they wait
(`calls`). They wait at every exchange with a time limit, and learn at once when another process ends.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from mlflow_ft.errors import ConfigError, ProcessError, StoppedError
from mlflow_ft.processes import Place

END = "end"
"""The last call: the other processes are no longer needed."""
BLAME_SECONDS = 8.0
"""How long rank 0 looks for the process that ended, once an exchange has failed."""
LOOK_SECONDS = 0.1
"""How often this process looks whether others have come, or have ended."""
LAST_LINES = 12
"""Lines of a lost process's log that are shown."""
Value = TypeVar("Value")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of the processes."""

    rank: int
    host: str
    pid: int
    log: str = ""
    """The file with its output."""

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def gone(self) -> bool:
        """Whether it has ended; False for a process of another machine."""
        try:
            return self.here and psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@dataclass(kw_only=True)
class _Team:
    """The processes that have joined."""

    store: Any
    control: Any
    """The process group for calls and results, on the CPU."""
    peers: tuple[Peer, ...]


losses: list[ProcessError] = []
"""The processes that were lost, as rank 0 found out."""
_team: list[_Team] = []
"""Holds the team once this process has joined one, as torch.distributed holds its process group."""


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if _team else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _team else 1


def leads() -> bool:
    """Whether this process logs and writes."""
    return rank() == 0


def join(place: Place, *, join_minutes: float, timeout_minutes: float, log_file: str = "") -> None:
    """Wait until all processes are there, and connect them.

    Args:
        place: this process among them.
        join_minutes: how long to wait for the others.
        timeout_minutes: how long any later exchange may wait. That of rank 0 counts for all.
        log_file: the file with this process's output.

    Raises:
        ConfigError: some processes did not come in time.
    """
    if place.size == 1 or _team:
        return
    limit = timedelta(minutes=join_minutes)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(place.local_rank)
    try:
        store = _store(place, limit)
    except (LookupError, ValueError, RuntimeError) as error:
        raise _absent(place, join_minutes, str(error)) from error
    store.set_timeout(limit)
    mine = Peer(rank=place.rank, host=socket.gethostname(), pid=os.getpid(), log=log_file)
    peers = _introduced(store, place, mine, join_minutes)
    if place.leads:
        store.set("timeout_minutes", str(timeout_minutes))
    timeout = timedelta(minutes=float(store.get("timeout_minutes")))
    dist.init_process_group(
        backend=backend, store=PrefixStore("group", store), rank=place.rank, world_size=place.size, timeout=timeout
    )
    store.set_timeout(timeout)
    _team.append(_Team(store=store, control=dist.new_group(backend="gloo", timeout=timeout), peers=peers))


def _store(place: Place, limit: timedelta) -> Any:
    """The store in which the processes meet: torchrun's, else one that rank 0 opens at MASTER_ADDR, MASTER_PORT.

    As torch's rendezvous `env://`, which waits for all processes and lets no signal through meanwhile.
    """
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        place.size,
        place.leads and not torchrun,
        timeout=limit,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"mlflow-ft/{attempt}", store)


def _introduced(store: Any, place: Place, mine: Peer, minutes: float) -> tuple[Peer, ...]:
    """Tell the others where this process is, and wait for them."""
    import json

    store.set(f"peer/{place.rank}", json.dumps(asdict(mine)))
    until = time.monotonic() + minutes * 60
    while absent := [number for number in range(place.size) if not store.check([f"peer/{number}"])]:
        if time.monotonic() > until:
            raise _absent(place, minutes, f"missing: rank {', '.join(map(str, absent))}")
        time.sleep(LOOK_SECONDS)  # here and not in the store, where a signal would wait too
    return tuple(Peer(**json.loads(store.get(f"peer/{number}"))) for number in range(place.size))


def _absent(place: Place, minutes: float, reason: str) -> ConfigError:
    return ConfigError(
        f"not all {place.size} processes came within {minutes:g} minutes: {reason.splitlines()[0]}",
        hint="check that the command was started on every machine, and that they reach MASTER_ADDR and MASTER_PORT "
        f"({os.environ.get('MASTER_ADDR', 'not set')}:{os.environ.get('MASTER_PORT', 'not set')}); "
        "or wait longer (--launch.join_minutes)",
    )


def leave() -> None:
    """Release the other processes and disconnect; called by rank 0 when its job is done, by the others after END."""
    if not _team:
        return
    if leads():
        call(END)
    _team.clear()
    dist.destroy_process_group()


def call(task: str, content: Any = None) -> None:
    """Call the other processes to a task; only rank 0 does."""
    if _team and leads():
        dist.broadcast_object_list([task, content], src=0, group=_team[0].control)


def calls() -> Iterator[tuple[str, Any]]:
    """What rank 0 calls this process to, until it is no longer needed."""
    while True:
        message: list[Any] = [None, None]
        dist.broadcast_object_list(message, src=0, group=_team[0].control)
        task, content = message
        if task == END:
            return
        yield task, content


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank; every process must call it."""
    if not _team:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_team[0].control)
    return values


def mine(values: Sequence[Value]) -> list[Value]:
    """This process's share of values: every n-th one."""
    return list(values[rank() :: size()])


def together(share: Sequence[Value]) -> list[Value]:
    """All values in their original order, from the share that each process has worked on (`mine`)."""
    shares = gather(list(share))
    whole: list[Any] = [None] * sum(map(len, shares))
    for number, part in enumerate(shares):
        whole[number :: len(shares)] = part
    return whole


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process; every process must call it."""
    if not _team:
        return flags
    counts = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=_team[0].control)
    return tuple(map(bool, counts.tolist()))


# --- a process that ends before its time


def report_end(error: BaseException | None) -> None:
    """Tell rank 0 how this process ended; called by the others."""
    if not _team:
        return
    text = "" if error is None or isinstance(error, StoppedError) else f"{type(error).__name__}: {error}"
    try:
        _team[0].store.set(f"ended/{rank()}", text)
    except RuntimeError as gone:  # rank 0 has ended, and its store with it
        log.info("rank 0 does not answer: %s", gone)


def lost(error: BaseException) -> ProcessError | None:
    """What to raise instead of an error of rank 0 if it was caused by the end of another process; else None."""
    if not _team or isinstance(error, ProcessError) or not leads():
        return None
    seconds = BLAME_SECONDS if isinstance(error, RuntimeError | OSError) else 0
    try:
        ended = _ended(seconds)
    except StoppedError:  # torchrun stops the others when one is lost
        ended = _ended(0)
        if not ended:
            raise
    if ended:
        losses.append(ended)
        _team.clear()  # nothing more can be exchanged
    return ended


def _ended(seconds: float) -> ProcessError | None:
    """The first process that has ended with an error, or ends so within some seconds."""
    until = time.monotonic() + seconds
    while not (ended := next(filter(None, map(_end_of, _team[0].peers[1:])), None)) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return ended


def _end_of(peer: Peer) -> ProcessError | None:
    store, key = _team[0].store, f"ended/{peer.rank}"
    place = f"rank {peer.rank} of {size()} (process {peer.pid} on {peer.host})"
    try:
        if store.check([key]):
            reason = store.get(key).decode()
            return ProcessError(f"{place} failed: {reason}", hint=_output(peer)) if reason else None
    except RuntimeError as away:  # torchrun, whose store it is, has ended
        log.info("the store does not answer: %s", away)
    if not peer.gone:
        return None
    return ProcessError(f"{place} died without an error of its own: killed, or crashed", hint=_output(peer))


def _output(peer: Peer) -> str:
    """The last lines of a process's output."""
    file = Path(peer.log)
    if not (peer.log and peer.here and file.is_file()):
        return f"its output is on {peer.host}: {peer.log}" if peer.log else ""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return (
        f"its last lines ({file}):" + "".join(f"\n    {line}" for line in lines)
        if lines
        else f"it wrote nothing to {file}"
    )


def described() -> str:
    """The processes that have joined, in words: `4 processes on 2 machines (nccl)`."""
    machines = len({peer.host for peer in _team[0].peers})
    return f"{size()} processes on {machines} machine{'s' * (machines != 1)} ({dist.get_backend()})"
