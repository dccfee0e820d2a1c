"""The gates that compare with another model row by row: the present champion or the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlflow_ft import Verdict
from mlflow_ft.candidacy import aimed_at

if TYPE_CHECKING:
    from mlflow_ft import Candidacy, Contender, Gates, PairedTest
    from mlflow_ft.candidacy import Rows
    from mlflow_ft.engine.judging.paired import Paired


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The model to beat."""

    rows: Rows
    sort: str
    """`champion` or `base model`."""
    name: str
    """Its name in messages."""
    unscored: str = ""
    """Why it has no scores on these rows."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """The digests of rows that are not the held-out ones, by score."""
    measured_by: Mapping[str, str] = field(default_factory=dict)
    """What gave a score, where that may differ."""


def beats_champion(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Better than the present champion on the same rows, by a margin, in a paired test."""
    champion = candidacy.champion
    if champion is None:
        return [Verdict.abstain(f"there is no {candidacy.alias} yet")]
    if gates.beats_champion is None:
        return [Verdict.abstain("beats_champion is null")]
    rival = Rival(
        rows=champion.rows,
        sort="champion",
        name="the champion",
        unscored=champion.unscored,
        digests=champion.digests,
        measured_by=champion.measured_by,
    )
    return compared(candidacy, rival, gates.beats_champion, gates)


def beats_base(candidacy: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Better than the model that its training began with, where there is no champion to beat."""
    candidate, champion = candidacy.candidate, candidacy.champion
    if champion is not None and not gates.beats_base.always:
        return [Verdict.abstain(f"version {champion.version} is the {candidacy.alias}: the one to beat instead")]
    name = f"its base {candidate.base}".rstrip()
    rival = Rival(
        rows=candidate.base_rows,
        sort="base model",
        name=name,
        digests=candidate.digests,
        measured_by=candidate.measured_by,
    )
    return compared(candidacy, rival, gates.beats_base, gates)


def compared(candidacy: Candidacy, rival: Rival, test: PairedTest, gates: Gates) -> list[Verdict]:
    """A verdict for each requested score."""
    candidate = candidacy.candidate
    own = aimed_at(candidate.aims, candidate.rows) or ""
    auto = aimed_at(candidate.aims, candidate.rows, rival.rows) or own
    names = list(dict.fromkeys(auto if name == "auto" else name for name in test.metrics))
    verdicts = [
        _verdict(candidate, rival, name, test, lower=candidacy.lower(name, gates), scores=len(names)) for name in names
    ]
    if auto == own:
        return verdicts
    note = f"; the {rival.sort} has no {own} on these rows"
    return [
        replace(verdict, found=verdict.found + note) if verdict.subject == auto else verdict for verdict in verdicts
    ]


def _verdict(candidate: Contender, rival: Rival, name: str, test: PairedTest, *, lower: bool, scores: int) -> Verdict:
    verdict = Verdict(passed=False, subject=name, found="", wanted=wanted(test, scores))
    ours = candidate.rows
    if reason := incomparable(candidate, rival, name):
        return replace(verdict, found=reason)
    from mlflow_ft.engine.judging.paired import paired_test, row_differences

    differences = row_differences(ours[name], rival.rows[name], lower_is_better=lower)
    if not differences:
        return replace(verdict, found=f"no row has a score for both the candidate and the {rival.sort}")
    level = confidence(test, scores)
    result = paired_test(differences, margin=test.margin, confidence=level, samples=test.samples)
    passed = result.low > test.margin and result.rows >= test.min_rows
    numbers = {
        "difference": result.difference,
        "low": result.low,
        "p_value": result.p_value,
        "rows": float(result.rows),
        "differing": float(result.differing),
        "min_rows": float(test.min_rows),
        "margin": test.margin,
        "confidence": level,
        "scores": float(scores),
    }
    numbers |= {} if result.needed is None else {"needed": float(needed(result, test))}
    return replace(verdict, passed=passed, found=in_words(result, rival, test, passed=passed), numbers=numbers)


def incomparable(candidate: Contender, rival: Rival, name: str) -> str:
    """Why two models cannot be compared by a score; "" where they can."""
    ours, theirs = candidate.rows.get(name), rival.rows.get(name)
    if rival.unscored and name not in rival.digests:
        return rival.unscored
    if ours is None or theirs is None:
        return f"the {'candidate' if ours is None else rival.sort} has no score {name!r} for each row"
    if candidate.digests.get(name) != rival.digests.get(name):
        return other_rows(name, rival.name)
    if candidate.measured_by.get(name) != rival.measured_by.get(name):
        return other_measure(name, rival.name)
    if len(ours) != len(theirs):
        return f"the candidate has {len(ours)} rows and the {rival.sort} {len(theirs)}"
    lost = sum(our is None and their is not None for our, their in zip(ours, theirs, strict=True))
    return f"the candidate has no score for {lost} rows for which the {rival.sort} has one" if lost else ""


def other_rows(name: str, rival: str) -> str:
    """That a score of two models is on different rows."""
    return f"{name} of {rival} is on other rows, or was asked otherwise: evaluate both with the same settings"


def other_measure(name: str, rival: str) -> str:
    """That a score of two models was given by different judges."""
    return f"{name} of {rival} was given by another judge, or by another rubric: have both judged by the same"


# --- in words


def wanted(test: PairedTest, scores: int) -> str:
    """What passes, in words."""
    together = f" ({percent(test.confidence)} over {scores} scores)" if scores > 1 else ""
    level = f"{percent(confidence(test, scores))} confidence{together}"
    return f"better by more than {test.margin:g}, {level}, on {test.min_rows} rows or more"


def confidence(test: PairedTest, scores: int) -> float:
    """The confidence for each score, so that all together have `test.confidence` (Bonferroni; Dunn 1961)."""
    return 1 - (1 - test.confidence) / scores


def percent(share: float) -> str:
    """A share as a short percentage: 95%, 98.33%."""
    return f"{100 * share:.4g}%"


def in_words(result: Paired, rival: Rival, test: PairedTest, *, passed: bool) -> str:
    """The result of the test; where it did not pass, how many rows would show the observed difference."""
    if not result.differing:
        return f"the same as {rival.name} on all {result.rows} rows; use another score, or rows that differ"
    words = f"{'better' if result.difference > 0 else 'worse'} than {rival.name} by {abs(result.difference):.4g}"
    words = words if result.difference else f"on average the same as {rival.name}"
    words += f" on {result.rows} rows" + (f" ({result.differing} differ)" if result.differing < result.rows else "")
    if result.rows < test.min_rows:
        return f"{words}: too few to tell{_more(result, test)}"
    low = "no lower bound" if math.isinf(result.low) else f"lower bound {result.low:+.4g}"
    return f"{words}; {low}, p {result.p_value:.2g}" + ("" if passed else _more(result, test))


def needed(result: Paired, test: PairedTest) -> int:
    """The number of rows that would show the observed difference in this test."""
    return max(result.needed or 0, test.min_rows)


def _more(result: Paired, test: PairedTest) -> str:
    if result.needed is None:
        return ""
    return f"; about {needed(result, test):,} rows would show a difference of this size"
