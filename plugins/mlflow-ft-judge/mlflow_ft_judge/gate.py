"""The gate `judge`: the candidate's answers are compared with the present champion's, pair by pair, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from mlflow_ft import ConfigError, Verdict
from mlflow_ft_judge import settings
from mlflow_ft_judge.settings import JudgeOptions

if TYPE_CHECKING:
    from mlflow_ft import Candidacy, Contender, Gates

OWN = ("min_win_rate", "confidence", "min_rows")
FROM_ENVIRONMENT = ("endpoint", "api_key_env", "second_endpoint", "second_api_key_env")
UNUSED = ("rubrics", "repeats", "pairwise", "traces", "price_in", "price_out")
SETTINGS = tuple(field.name for field in fields(JudgeOptions) if field.name not in (*FROM_ENVIRONMENT, *UNUSED))
OPTIONS = (*OWN, *SETTINGS)
"""What the gate reads under `options.judge`. A gates file may come from a run, whose author must not choose where the
key of whoever promotes is sent: the endpoint is in the environment."""


def judge(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The verdict; abstains where the gates file does not ask for it, or nothing has the alias."""
    given = gates.options.get("judge")
    if given is None:
        return [Verdict.abstain("options.judge is not set")]
    if candidacy.champion is None:
        return [Verdict.abstain(f"there is no {candidacy.alias} yet; `judge/win_rate` compares with the base model")]
    rate, confidence = float(given.get("min_win_rate", 0.5)), float(given.get("confidence", 0.95))
    if not 0 <= rate < 1 or not 0.5 < confidence < 1:
        raise ConfigError("options.judge: min_win_rate is from 0 to below 1, confidence between 0.5 and 1")
    wanted = f"wins more than {rate:.0%} against the champion, {confidence:.4g} confidence"
    if reason := incomparable(candidacy.candidate, candidacy.champion):
        return [Verdict(passed=False, found=reason, wanted=wanted)]
    from mlflow_ft_judge.engine import promoting

    options = settings.checked({name: value for name, value in given.items() if name not in OWN})
    settings.judges(options)
    return [promoting.verdict(candidacy, options, given, wanted=wanted)]


def incomparable(candidate: Contender, champion: Contender) -> str:
    """Why the answers of two versions cannot be compared; "" where they can."""
    if champion.unscored:
        return champion.unscored
    for name, contender in (("candidate", candidate), ("champion", champion)):
        if not contender.answers:
            return f"the {name}'s answers were not kept"
    if [row["prompt"] for row in candidate.answers] != [row["prompt"] for row in champion.answers]:
        return "the champion's answers are to other prompts"
    return ""
