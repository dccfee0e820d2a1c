"""Comparisons in MLflow: the run of one, its traces, and the runs that compared two given models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.comparing.pairs import FIRST, PAIRS_FILE, SECOND, Asked, Comparison, Contestant, Pair
from mlflow_ft.progress import Progress

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.operations.comparing.result import Result
    from mlflow_ft.tracking import ActiveRun, Store
    from mlflow_ft.tracking.votes import PairTrace, VoteStore

TAG = "mlflow_ft.compare."
KEY = f"{TAG}key"
READY = f"{TAG}ready"
"""The answers are kept: the run can be continued."""
COUNTED = f"{TAG}counted"
"""The numbers of votes after which the result was shown, in order."""


def tags(asked: Asked) -> dict[str, str]:
    """What the run compares."""
    return _models(asked.first, asked.second) | {KEY: asked.key, "mlflow_ft.method": "compare"}


def result_tags(found: Result, run: Run) -> dict[str, str]:
    """The result in a sentence, and after how many votes it was shown, this time and before."""
    shown = dict.fromkeys((*counted(run), found.votes))
    return {f"{TAG}result": found.sentence(), COUNTED: ", ".join(map(str, shown))}


def traces(active: ActiveRun, comparison: Comparison, progress: Progress) -> list[str]:
    """Log a trace for each pair, and return their ids."""
    found = []
    with progress.bar("log the pairs", total=len(comparison.pairs), unit="traces") as bar:
        for trace_id in vote_store(active).add_pairs(_as_trace(pair) for pair in comparison.pairs):
            found.append(trace_id)
            bar.advance()
    return found


def _as_trace(pair: Pair) -> PairTrace:
    from mlflow_ft.tracking.votes import PairTrace

    inputs = {"messages": list(pair.prompt.messages)} | ({"tools": pair.prompt.tools} if pair.prompt.tools else {})
    about = {f"{TAG}row": pair.prompt.place, f"{TAG}left": pair.left}
    return PairTrace(inputs=inputs, outputs={FIRST: pair.first, SECOND: pair.second}, tags=about)


def vote_store(active: ActiveRun) -> VoteStore:
    """The votes of an open run."""
    from mlflow_ft.tracking.votes import VoteStore

    return VoteStore(active.client, run_id=active.run_id, experiment_id=active.experiment_id)


def comparison(run_id: str, store: Store | None = None) -> Comparison:
    """The models and answers of a run.

    Raises:
        ConfigError: it has none.
    """
    from mlflow_ft.tracking import Store

    record = (store or Store.connect()).read(run_id, PAIRS_FILE)
    if record is None:
        raise ConfigError(f"run {run_id} has no {PAIRS_FILE}", hint="start the comparison again")
    return Comparison.of(record)


def unfinished(asked: Asked) -> Run | None:
    """The latest run that began this very comparison and was stopped; None if there is none.

    Raises:
        ConfigError: another process is at it.
    """
    from mlflow_ft.tracking import Store

    for run in Store.connect().runs_with({KEY: asked.key, READY: "true"}):
        _check_free(run)
        if run.info.status != "FINISHED":
            return run
    return None


def to_resume(run_id: str) -> Run:
    """The run of a comparison that can be continued.

    Raises:
        ConfigError: it is no comparison, its answers were not kept, or a process is at it.
    """
    from mlflow_ft.tracking import Store

    run = Store.connect().run(run_id)
    if READY not in run.data.tags:
        reason = "was stopped before all answers were there" if KEY in run.data.tags else "is not a comparison"
        raise ConfigError(f"run {run_id} {reason}", hint="start one: mlflow-ft compare FIRST SECOND --data ROWS")
    _check_free(run)
    return run


def between(one: Contestant, other: Contestant, store: Store) -> list[Run]:
    """The runs that compared these two, whichever was named first, the latest first."""
    runs: list[Run] = []
    for first, second in ((one, other), (other, one)):
        runs += store.runs_with(_models(first, second) | {READY: "true"})
    return sorted(runs, key=lambda run: run.info.start_time, reverse=True)


def counted(run: Run) -> tuple[int, ...]:
    """The numbers of votes after which the result of a run was shown, in order."""
    return tuple(map(int, filter(None, run.data.tags.get(COUNTED, "").split(", "))))


def _models(first: Contestant, second: Contestant) -> dict[str, str]:
    models = {FIRST: first, SECOND: second}
    named = {f"{TAG}{side}": model.uri for side, model in models.items()}
    return named | {f"{TAG}{side}_weights": model.weights for side, model in models.items()}


def _check_free(run: Run) -> None:
    if run.info.status == "RUNNING":
        raise ConfigError(
            f"run {run.info.run_id} is this comparison, and a process is at it: its page is open",
            hint="vote there, or stop it first (Ctrl-C)",
        )
