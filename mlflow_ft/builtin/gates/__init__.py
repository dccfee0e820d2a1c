"""The built-in gates: conditions on the run, its data, its scores and the present champion for a promotion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mlflow_ft import Gate, Verdict, hookimpl
from mlflow_ft.builtin.gates import beats, people

if TYPE_CHECKING:
    from mlflow_ft import Candidacy, Gates

DAY_MS = 86_400_000
MISSING = "no such score"


def finished(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The run finished."""
    status = candidacy.candidate.status
    return [Verdict(passed=status == "FINISHED", found=status or "there is no such run", wanted="FINISHED")]


def parity(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The registered form was measured to match the trained model."""
    limit = _number(candidacy.candidate.params.get("cfg.package.max_kl", ""))
    measured = _number(candidacy.candidate.tags.get("mlflow_ft.parity.kl_mean", ""))
    if measured is None or limit is None:
        return [Verdict(passed=False, found="was not measured", wanted="a measured parity")]
    return [
        Verdict(
            passed=measured <= limit,
            found=f"mean KL {measured:.4g}",
            wanted=f"at most {limit:g} nats per token",
            numbers={"kl_mean": measured, "max_kl": limit},
        )
    ]


def data_checks(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """No check of the training data found an error."""
    report = candidacy.candidate.quality
    if report is None:
        return [Verdict(passed=False, found="the data was not checked", wanted="no errors")]
    results = [check for check in report["checks"] if check["severity"] == "error" and check["count"]]
    errors = {check["name"]: int(check["count"]) for check in results}
    counts = ", ".join(f"{name} {count}" for name, count in errors.items())
    numbers = {f"errors/{name}": float(count) for name, count in errors.items()}
    return [Verdict(passed=not errors, found=counts or "no errors", wanted="no errors", numbers=numbers)]


def card(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The model has a card or a description."""
    described = candidacy.candidate.described
    return [
        Verdict(passed=described, found="there is one" if described else "none", wanted="README.md, or the description")
    ]


def required(name: str, judge: Callable[[Candidacy, Gates], Sequence[Verdict]]) -> Gate:
    """A pass-or-fail gate that applies where `require` names it."""
    return Gate(
        name=name,
        summary=(judge.__doc__ or "").rstrip(".").lower(),
        judge=lambda candidacy, gates: (
            judge(candidacy, gates) if name in gates.require else [Verdict.abstain("it is not in `require`")]
        ),
    )


def freshness(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The run did not end too long ago."""
    if gates.max_age_days is None:
        return [Verdict.abstain("max_age_days is not set")]
    wanted = f"at most {gates.max_age_days:g} days"
    if candidacy.candidate.ended_ms is None:
        return [Verdict(passed=False, found="the run has not ended", wanted=wanted)]
    days = (candidacy.now_ms - candidacy.candidate.ended_ms) / DAY_MS
    return [Verdict(passed=days <= gates.max_age_days, found=f"{days:.2f} days", wanted=wanted, numbers={"days": days})]


def scores(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Bounds on single scores on the held-out rows."""
    bounds = [(name, bound, 1, "at least") for name, bound in gates.min_scores.items()]
    bounds += [(name, bound, -1, "at most") for name, bound in gates.max_scores.items()]
    if not bounds:
        return [Verdict.abstain("min_scores and max_scores name no score")]
    verdicts = []
    for name, bound, sign, words in bounds:
        value = candidacy.candidate.score(name)
        verdicts.append(
            Verdict(
                subject=name,
                passed=value is not None and sign * value >= sign * bound,
                found=MISSING if value is None else f"{value:.6g}",
                wanted=f"{words} {bound:g}",
                numbers={"bound": bound} if value is None else {"value": value, "bound": bound},
            )
        )
    return verdicts


def no_regression(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Guarded scores are at most so much worse than the champion's, or the base model's before a first champion."""
    if not gates.max_regression:
        return [Verdict.abstain("max_regression names no score")]
    return [
        _guarded(candidacy, name, most, lower=candidacy.lower(name, gates))
        for name, most in gates.max_regression.items()
    ]


def _guarded(candidacy: Candidacy, name: str, most: float, *, lower: bool) -> Verdict:
    champion, candidate = candidacy.champion, candidacy.candidate
    who = "the champion" if champion else "the base model"
    before = champion.score(name) if champion else candidate.score(name, of="base")
    ours = candidate.score(name)
    wanted = f"at most {most:g} worse than {who}"
    if ours is None or before is None:
        reason = (champion.unscored if champion and ours is not None else "") or MISSING
        return Verdict(subject=name, passed=False, found=reason, wanted=wanted)
    if champion and champion.digests.get(name) != candidate.digests.get(name):
        return Verdict(subject=name, passed=False, found=beats.other_rows(name, who), wanted=wanted)
    if champion and champion.measured_by.get(name) != candidate.measured_by.get(name):
        return Verdict(subject=name, passed=False, found=beats.other_measure(name, who), wanted=wanted)
    worse = ours - before if lower else before - ours
    return Verdict(
        subject=name,
        passed=worse <= most + 1e-12,  # 0.8 - 0.7 is not 0.1
        found=f"{ours:.6g}; {who} {before:.6g}",
        wanted=wanted,
        numbers={"value": ours, "before": before, "worse": worse, "allowed": most},
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


REQUIRED: Mapping[str, Callable[[Candidacy, Gates], Sequence[Verdict]]] = {
    "finished": finished,
    "parity": parity,
    "data-checks": data_checks,
    "card": card,
}


@hookimpl
def register_gates() -> list[Gate]:
    return [
        *(required(name, judge) for name, judge in REQUIRED.items()),
        Gate(name="freshness", summary="the run ended at most `max_age_days` ago", judge=freshness),
        Gate(name="scores", summary="scores are within `min_scores` and `max_scores`", judge=scores),
        Gate(
            name="beats-champion",
            summary="better than the champion on the same rows by a margin, by a paired test",
            judge=beats.beats_champion,
        ),
        Gate(
            name="beats-base",
            summary="without a champion yet, better than the base model on the same rows, by a paired test",
            judge=beats.beats_base,
            always=True,
        ),
        Gate(
            name="preferred-by-people",
            summary="people prefer its answers to the champion's, in a blind comparison (`mlflow-ft compare`)",
            judge=people.preferred,
        ),
        Gate(
            name="no-regression",
            summary="guarded scores are at most `max_regression` worse than the champion's, or the base model's",
            judge=no_regression,
        ),
    ]
