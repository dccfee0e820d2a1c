"""The candidate's answers against the champion's, as evidence for a promotion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_ft import Answer, Candidacy, Verdict
from mlflow_ft.engine import paired
from mlflow_ft_judge import settings
from mlflow_ft_judge.engine import comparing
from mlflow_ft_judge.engine.asking import Asked, reasons
from mlflow_ft_judge.settings import JudgeOptions

MIN_ROWS = 30
"""As for the other paired tests of a promotion."""


def verdict(candidacy: Candidacy, options: JudgeOptions, given: Mapping[str, Any], *, wanted: str) -> Verdict:
    """Whether the candidate wins more often than asked for, by the paired test of promotions.

    Raises:
        ConfigError: the settings or the environment name no judge.
    """
    if candidacy.champion is None:
        raise ValueError("there is no champion to compare with")
    rate, confidence = float(given.get("min_win_rate", comparing.TIE)), float(given.get("confidence", 0.95))
    min_rows = int(given.get("min_rows", MIN_ROWS))
    rows = candidacy.candidate.answers[: options.max_rows]
    ours = [answer_of(row) for row in rows]
    theirs = [row["tuned"] for row in candidacy.champion.answers[: options.max_rows]]
    asked = [Asked(judge, options) for judge in settings.judges(options)]
    try:
        comparison = comparing.compare(ours, theirs, asked, done=lambda: None)
    finally:
        for judge in asked:
            judge.close()
    failed = sum(row is None for row in comparison.rows)
    judged = [row for row in comparison.rows if row is not None]
    numbers = {"not_judged": float(failed), "rows": float(len(judged))}
    if failed > options.max_failures * len(ours) or not judged:
        why = reasons(judge.account for judge in asked)
        found = f"{failed} of {len(ours)} pairs could not be judged ({why})"
        return Verdict(passed=False, found=found, wanted=wanted, numbers=numbers)
    result = paired.paired_test([row - rate for row in judged], margin=0.0, confidence=confidence)
    wins, ties, losses = comparing.shares(judged)
    enough = len(judged) >= min_rows
    found = (
        f"win rate {result.difference + rate:.4g} on {len(judged)} pairs ({wins:.0%} won, {ties:.0%} ties, "
        f"{losses:.0%} lost; the orders agree on {comparison.order_agreement:.0%}), lower bound "
        f"{result.low + rate:.4g}, p {result.p_value:.2g}"
    )
    found += "" if enough else f"; too few to tell, at least {min_rows} are needed"
    found += f"; {failed} pairs could not be judged" if failed else ""
    numbers |= {"wins": wins, "ties": ties, "losses": losses, "position_bias": comparison.position_bias}
    numbers |= {"win_rate": result.difference + rate, "low": result.low + rate}
    numbers |= {"p_value": result.p_value, "order_agreement": comparison.order_agreement}
    return Verdict(passed=result.low > 0 and enough, found=found, wanted=wanted, numbers=numbers)


def answer_of(row: Mapping[str, str]) -> Answer:
    """A row of the kept table as an answer; the prompt is there as one text."""
    prompt = ({"role": "user", "content": row["prompt"]},)
    return Answer(prompt=prompt, expected=row["expected"], text=row["tuned"], finished=True)
