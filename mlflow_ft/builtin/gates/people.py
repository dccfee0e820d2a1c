"""The gate that asks people: the newest blind comparison of the candidate with the champion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft import Verdict

if TYPE_CHECKING:
    from mlflow_ft import Candidacy, Gates


def preferred(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """People preferred its answers to the champion's, without knowing whose they were."""
    asked, champion, found = gates.preferred_by_people, candidacy.champion, candidacy.preference
    if asked is None:
        return [Verdict.abstain("preferred_by_people is not set")]
    if champion is None:
        return [Verdict.abstain(f"there is no {candidacy.alias} yet")]
    wanted = (
        f"a win rate of {asked.at_least:.4g} against the champion or more, {asked.confidence:.4g} confidence, "
        f"by {asked.votes} votes or more"
    )
    if found is None:
        candidate = candidacy.candidate
        names = f"{champion.name}/{champion.version} {candidate.name}/{candidate.version}"
        reason = f"nobody has compared these two; type: mlflow-ft compare {names} --data ROWS"
        return [Verdict(passed=False, found=reason, wanted=wanted)]
    again = f"mlflow-ft compare --resume {found.run_id}"
    if found.unusable:
        return [Verdict(passed=False, found=found.unusable, wanted=wanted)]
    if not found.votes:
        return [Verdict(passed=False, found=f"nobody has voted yet; type: {again}", wanted=wanted)]
    from mlflow_ft.engine.judging.win_rate import win_rate

    # the lower end of a two-sided interval is the one-sided bound at a higher confidence
    result = win_rate(wins=found.wins, ties=found.ties, losses=found.losses, confidence=2 * asked.confidence - 1)
    words = f"win rate {result.rate:.4g} in {found.votes} votes (run {found.run_id}), lower bound {result.low:.4g}"
    words += f"; the newest of {found.comparisons} comparisons" if found.comparisons > 1 else ""
    if len(found.counted) > 1:
        words += f"; its result was seen after {', '.join(map(str, found.counted[:-1]))} votes, before the last ones"
    if found.votes < asked.votes:
        words += f"; too few votes, for more: {again}"
    numbers = {
        "win_rate": result.rate,
        "low": result.low,
        "at_least": asked.at_least,
        "confidence": asked.confidence,
        "votes": float(found.votes),
        "votes_needed": float(asked.votes),
        "wins": float(found.wins),
        "ties": float(found.ties),
        "losses": float(found.losses),
        "comparisons": float(found.comparisons),
    }
    passed = result.low >= asked.at_least and found.votes >= asked.votes
    return [Verdict(passed=passed, found=words, wanted=wanted, numbers=numbers)]
