"""What people said of a candidate and the champion: the newest comparison of these very versions and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.candidacy import Contender, Preference
from mlflow_ft.operations.comparing import recorded, result
from mlflow_ft.operations.comparing.pairs import Contestant

if TYPE_CHECKING:
    from mlflow_ft.tracking import Store


def preference(candidate: Contender, champion: Contender, store: Store, champion_store: Store) -> Preference | None:
    """The newest comparison in the candidate's store; None where there is none.

    It is counted from its votes: a result that was logged may be older than the last of them.

    Raises:
        TrackingError: the server does not answer.
    """
    mine, theirs = _contestant(candidate, store), _contestant(champion, champion_store)
    for contestant in (mine, theirs):
        if not contestant.weights:
            return Preference(unusable=f"{contestant.uri} has no manifest: nobody knows which weights people compared")
    runs = recorded.between(mine, theirs, store)
    if not runs:
        return None
    newest = runs[0]
    if newest.info.status == "RUNNING":
        return Preference(run_id=newest.info.run_id, unusable=f"people are still voting, in run {newest.info.run_id}")
    comparison = recorded.comparison(newest.info.run_id, store)
    found = result.of(comparison, store.votes(newest).votes())
    about = Preference(run_id=newest.info.run_id, counted=recorded.counted(newest), comparisons=len(runs))
    if found is None:
        return about
    wins, losses = (found.wins, found.losses) if comparison.second == mine else (found.losses, found.wins)
    return replace(about, wins=wins, ties=found.ties, losses=losses, votes=found.votes)


def _contestant(contender: Contender, store: Store) -> Contestant:
    """A version as a comparison records it; its weights are "" if they are not known."""
    weights = store.weights(contender.name, contender.version)
    return Contestant(uri=f"models:/{contender.name}/{contender.version}", weights=weights)
