"""What plugins return to choose machines, and to start work on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.values import Advice, Launch, Machines, Places, Situation, Trials


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Where the processes of a run are: this process alone, several on this machine, a cluster.

    `launch` starts `launch.processes` processes, waits until they have ended, and returns what rank 0 returned. In
    each of them the launcher sets torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and
    calls `mlflow_ft.launched.work(launch.request)`, or runs `python -m mlflow_ft.launched FILE` with the request in
    FILE. It passes SIGTERM and SIGINT on. Where `launch` is None, the run stays in the process that was started.
    """

    name: str
    summary: str
    launch: Callable[[Launch], str] | None = None
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why these settings cannot work here, and a remedy, in a sentence; None where they can. Called before anything is
    loaded or started."""
    trials: Callable[[Trials], AbstractContextManager[Places]] | None = None
    """Where the trials of a sweep run, each as one process; None where this launcher starts none. It is entered before
    anything is loaded, and may raise `FineTuneError`. The sweep draws the trials, records how they end, and asks to
    stop them with SIGTERM; a trial that is started a second time continues its own run."""


@dataclass(frozen=True, kw_only=True)
class PlanRule:
    """A rule of `mlflow-ft plan`: in which situations it applies, and what it then advises.

    First all rules are asked for `methods`, `weights` and `strategies`. Of each, the first rule's list is preferred;
    what other rules add to it are fallbacks and alternatives. The plan takes the first way to train that fits, as the
    estimate of memory says. For each way all rules are asked again, with `situation.choice` set, for `settings`: the
    first rule that sets one decides.
    """

    name: str
    summary: str
    source: str
    """A citation: a paper's address, or a document's."""
    applies: Callable[[Situation], bool]
    advise: Callable[[Situation], Advice]
    priority: int = 0
    """Rules of a higher priority are asked first, then those registered earlier. All built-in rules have 0."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where the rows of a data set are read, tokenised, proved and checked: in this process and its helpers, or on a
    cluster.

    `machines` is a context manager that connects to several machines, or gives None for this one. The prepared rows are
    written by this process, and the findings are the same.
    """

    name: str
    summary: str
    machines: Callable[[], AbstractContextManager[Machines | None]] = nullcontext
    refuses: Callable[[], str | None] = lambda: None
    """Why it cannot be used here, and a remedy, in a sentence; None where it can. Called before anything is read."""
