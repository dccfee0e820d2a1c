"""Which gates a version is held to, and whether what they ask for is there: options, names of gates and of scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlflow_ft.candidacy import Contender
from mlflow_ft.config.gates import Gates, near, read_gates
from mlflow_ft.config.given import headline
from mlflow_ft.errors import ConfigError, Problem

if TYPE_CHECKING:
    from mlflow_ft.tracking import Store

TUNED = "eval/tuned/"


def settings(given: Gates | None, place: str, store: Store, candidate: Contender) -> tuple[Gates, str]:
    """The gates that were given, else those that the version's run has kept, else the defaults; and which it was."""
    from mlflow_ft.tracking import contenders

    if given is not None:
        return given, place
    kept = store.read(candidate.run_id, contenders.GATES_FILE) if candidate.run_id else None
    if kept:
        place = f"{contenders.GATES_FILE} of run {candidate.run_id}"
        return read_gates(kept, place=place), place
    return Gates(), "defaults"


def check_scores(gates: Gates, contenders: Iterable[Contender | None], *, place: str) -> None:
    """Raise ConfigError for scores that no run has: a misspelt name would stand for missing evidence, or for nothing.

    Where the runs have no scores at all, the gates say so themselves.
    """
    known = [one for one in contenders if one is not None]
    for_rows = sorted({name for one in known for name in (*one.rows, *one.base_rows)})
    metrics = {name for one in known for name in one.metrics}
    scores = sorted({name.removeprefix(TUNED) for name in metrics if name.startswith(TUNED)} | set(for_rows))
    problems = []
    for setting, name in gates.scores():
        where = f"{place}  {setting}: {name}"
        if setting.endswith(".metric") and name in scores and for_rows and name not in for_rows:
            hint = f"those that have are {', '.join(for_rows)}"
            problems.append(Problem(place=where, message="a score without a value for each row", hint=hint))
        elif scores and name not in scores and name not in metrics:
            hint = near(name, scores, what="it has")
            if hint.startswith("did"):
                hint += f" The run has {', '.join(scores)}"
            problems.append(Problem(place=where, message="the run has no such score", hint=hint))
    if problems:
        raise ConfigError(headline(problems, "in what the gates ask for"), problems=problems)
