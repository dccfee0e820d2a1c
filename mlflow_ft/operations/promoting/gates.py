"""The gates of a version, and whether the scores that they name exist."""

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
    """The given gates, else those logged with the version's run, else the defaults; and where they come from."""
    from mlflow_ft.tracking import contenders

    if given is not None:
        return given, place
    logged = store.read(candidate.run_id, contenders.GATES_FILE) if candidate.run_id else None
    if logged:
        place = f"{contenders.GATES_FILE} of run {candidate.run_id}"
        return read_gates(logged, place=place), place
    return Gates(), "defaults"


def check_scores(gates: Gates, contenders: Iterable[Contender | None], *, place: str) -> None:
    """Raise ConfigError for scores that no run has: a misspelt name must not pass for missing evidence.

    If the runs have no scores, the gates report that.
    """
    known = [contender for contender in contenders if contender is not None]
    for_rows = sorted({name for contender in known for name in (*contender.rows, *contender.base_rows)})
    metrics = {name for contender in known for name in contender.metrics}
    scores = sorted({name.removeprefix(TUNED) for name in metrics if name.startswith(TUNED)} | set(for_rows))
    problems = []
    for setting, name in gates.scores():
        where = f"{place}  {setting}: {name}"
        if setting.endswith(".metric") and name in scores and for_rows and name not in for_rows:
            hint = f"those that have one: {', '.join(for_rows)}"
            problems.append(Problem(place=where, message="this score has no value for each row", hint=hint))
        elif scores and name not in scores and name not in metrics:
            hint = near(name, scores, what="it has")
            if hint.startswith("did"):
                hint += f" The run has {', '.join(scores)}"
            problems.append(Problem(place=where, message="the run has no such score", hint=hint))
    if problems:
        raise ConfigError(headline(problems, "in the scores that the gates name"), problems=problems)
