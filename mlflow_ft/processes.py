"""Which process of a job this is, by the variables of whoever started it: torchrun, accelerate, srun, mpirun."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mlflow_ft.errors import ConfigError

FIRST_PORT, PORTS = 20_000, 20_000
"""Under Slurm the port comes from the number of the job, so that two jobs on a node do not meet."""
DEFAULT_PORT = 29_500


LAUNCHED = "MLFLOW_FT_LAUNCHED"
"""The variable that is set in the processes that a launcher has started: they start no others, even if alone."""


LOOK_SECONDS = 1.0
"""Between two looks for the process that started this one."""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A program that starts several processes, and the variables in which it numbers them."""

    name: str
    size: str
    rank: str
    local_rank: str
    local_size: str


STARTERS = (
    Starter(
        name="torchrun or accelerate launch",
        size="WORLD_SIZE",
        rank="RANK",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
    ),
    Starter(
        name="srun",
        size="SLURM_STEP_NUM_TASKS",
        rank="SLURM_PROCID",
        local_rank="SLURM_LOCALID",
        local_size="SLURM_NTASKS_PER_NODE",
    ),
    Starter(
        name="mpirun",
        size="OMPI_COMM_WORLD_SIZE",
        rank="OMPI_COMM_WORLD_RANK",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Starter(
        name="mpirun", size="PMI_SIZE", rank="PMI_RANK", local_rank="MPI_LOCALRANKID", local_size="MPI_LOCALNRANKS"
    ),
)
"""In this order: torchrun may itself run under srun."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine, which is also that of its GPU."""
    starter: Starter | None = None

    @property
    def leads(self) -> bool:
        """Whether this process has the MLflow run."""
        return self.rank == 0


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process among those that were started together; a job of one process where nobody numbered them.

    Raises:
        ConfigError: several were started, but this one has no number.
    """
    for starter in STARTERS:
        size = environ.get(starter.size, "")
        if not size.isdecimal() or int(size) < 2:
            continue
        rank, local = environ.get(starter.rank, ""), environ.get(starter.local_rank, "0")
        if not (rank.isdecimal() and int(rank) < int(size)):
            raise ConfigError(
                f"{starter.name} started {size} processes ({starter.size}), but {starter.rank} of this one is "
                f"{rank!r}: unset {starter.size}, or start the command with {starter.name}"
            )
        return Place(rank=int(rank), size=int(size), local_rank=int(local or 0), starter=starter)
    return Place()


@contextmanager
def launched() -> Iterator[None]:
    """Inside, this process is one that a launcher has started."""
    before = os.environ.get(LAUNCHED)
    os.environ[LAUNCHED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LAUNCHED]
        else:
            os.environ[LAUNCHED] = before


def settle(environ: MutableMapping[str, str] = os.environ) -> Place:
    """Translate the variables of srun and mpirun into torchrun's, which torch, accelerate and DeepSpeed read.

    Raises:
        ConfigError: nobody says where rank 0 is.
    """
    here = place(environ)
    if here.starter is None or here.starter.rank == "RANK":
        return here
    environ.update(RANK=str(here.rank), WORLD_SIZE=str(here.size), LOCAL_RANK=str(here.local_rank))
    local_size = re.match(r"\d+", environ.get(here.starter.local_size, ""))
    if local_size:
        environ.setdefault("LOCAL_WORLD_SIZE", local_size.group())
    environ.setdefault("MASTER_ADDR", _address(environ, here))
    environ.setdefault("MASTER_PORT", str(_port(environ)))
    return here


def _address(environ: Mapping[str, str], here: Place) -> str:
    """The machine of rank 0: the first of Slurm's list of nodes; this one if all processes are here."""
    if nodes := environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST"):
        return first_node(nodes)
    if environ.get("LOCAL_WORLD_SIZE") == str(here.size):
        return "127.0.0.1"
    name = here.starter.name if here.starter else ""
    raise ConfigError(
        f"{name} started {here.size} processes on several machines, and nobody says where rank 0 is",
        hint="export MASTER_ADDR, the address of the machine of rank 0, and MASTER_PORT, a free port there",
    )


def _port(environ: Mapping[str, str]) -> int:
    job = environ.get("SLURM_JOB_ID", "")
    return FIRST_PORT + int(job) % PORTS if job.isdecimal() else DEFAULT_PORT


def first_node(nodes: str) -> str:
    """The first host of a list in Slurm's notation.

    >>> first_node("gpu[07-09,12],login1")
    'gpu07'
    >>> first_node("rack[1-2]-n[3-4]")
    'rack1-n3'
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes.strip())
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else nodes


def check_single(environ: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where several processes were started of a command that runs in one."""
    here = place(environ)
    if here.starter is not None:
        raise ConfigError(
            f"{here.starter.name} started {here.size} processes ({here.starter.size}), but this command runs in one: "
            "start it without; `train`, `align`, `rlhf`, `resume` and `reproduce` run in several"
        )


@contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle SIGTERM and SIGINT for the duration of a block; Python allows it in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def when_orphaned(parent: int, end: Callable[[], None]) -> None:
    """Call `end`, in a thread, when the process that started this one is gone; `parent` is its id."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()
