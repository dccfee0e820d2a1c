"""The gates that compare with another model row by row: the present champion, and the base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_ft import Verdict
from mlflow_ft.candidacy import aimed_at

if TYPE_CHECKING:
    from mlflow_ft.candidacy import Candidacy, Contender, Rows
    from mlflow_ft.config.gates import Gates, PairedTest
    from mlflow_ft.engine.judging.paired import Paired


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The model to beat."""

    rows: Rows
    sort: str
    """`champion` or `base model`."""
    name: str
    """As a sentence names it."""
    unscored: str = ""
    """Why it has no scores on these rows."""


def beats_champion(about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Better than the present champion on the same rows, by a margin, as a paired test finds."""
    champion = about.champion
    if champion is None:
        return [Verdict.abstain(f"there is no {about.alias} yet")]
    if gates.beats_champion is None:
        return [Verdict.abstain("beats_champion is null")]
    rival = Rival(rows=champion.rows, sort="champion", name="the champion", unscored=champion.unscored)
    return compared(about.candidate, rival, gates.beats_champion, gates)


def beats_base(about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Better than the model that its training began with, where there is no champion to beat."""
    candidate = about.candidate
    if about.champion is not None and not gates.beats_base.always:
        return [
            Verdict.abstain(f"version {about.champion.version} is the {about.alias}, which is to be beaten instead")
        ]
    name = f"its base {candidate.base}".rstrip()
    return compared(candidate, Rival(rows=candidate.base_rows, sort="base model", name=name), gates.beats_base, gates)


def compared(candidate: Contender, rival: Rival, test: PairedTest, gates: Gates) -> list[Verdict]:
    """A verdict for each score that is asked for."""
    own = aimed_at(candidate.aims, candidate.rows) or ""
    auto = aimed_at(candidate.aims, candidate.rows, rival.rows) or own
    names = list(dict.fromkeys(auto if name == "auto" else name for name in test.metrics))
    found = [_verdict(candidate.rows, rival, name, test, gates, scores=len(names)) for name in names]
    if auto == own:
        return found
    note = f"; {own} is not known of the {rival.sort} on these rows"
    return [replace(one, found=one.found + note) if one.subject == auto else one for one in found]


def _verdict(ours: Rows, rival: Rival, name: str, test: PairedTest, gates: Gates, *, scores: int) -> Verdict:
    verdict = Verdict(passed=False, subject=name, found="", wanted=wanted(test, scores))
    if reason := incomparable(ours.get(name), rival, name):
        return replace(verdict, found=reason)
    from mlflow_ft.engine.judging.paired import paired_test, row_differences

    differences = row_differences(ours[name], rival.rows[name], lower_is_better=gates.lower(name))
    if not differences:
        return replace(verdict, found=f"no row has a score of both the candidate and the {rival.sort}")
    sure = confidence(test, scores)
    found = paired_test(differences, margin=test.margin, confidence=sure, samples=test.samples)
    passed = found.low > test.margin and found.rows >= test.min_rows
    numbers = {
        "difference": found.difference,
        "low": found.low,
        "p_value": found.p_value,
        "rows": float(found.rows),
        "differing": float(found.differing),
        "min_rows": float(test.min_rows),
        "margin": test.margin,
        "confidence": sure,
        "scores": float(scores),
    }
    numbers |= {} if found.needed is None else {"needed": float(needed(found, test))}
    return replace(verdict, passed=passed, found=told(found, rival, test, passed=passed), numbers=numbers)


def incomparable(ours: Sequence[float | None] | None, rival: Rival, name: str) -> str:
    """Why two models cannot be compared by a score, in a sentence; "" where they can."""
    theirs = rival.rows.get(name)
    if rival.unscored:
        return rival.unscored
    if ours is None or theirs is None:
        return f"the {'candidate' if ours is None else rival.sort} has no score {name!r} for each row"
    if len(ours) != len(theirs):
        return f"the candidate has {len(ours)} rows and the {rival.sort} {len(theirs)}"
    lost = sum(one is None and other is not None for one, other in zip(ours, theirs, strict=True))
    return f"the candidate has no score for {lost} rows for which the {rival.sort} has one" if lost else ""


# --- in words


def wanted(test: PairedTest, scores: int) -> str:
    """What passes."""
    together = f" ({percent(test.confidence)} over {scores} scores)" if scores > 1 else ""
    sure = f"{percent(confidence(test, scores))} sure{together}"
    return f"better by more than {test.margin:g}, {sure}, on {test.min_rows} rows or more"


def confidence(test: PairedTest, scores: int) -> float:
    """Of each of several scores, so that all together have the one that was asked for (Bonferroni; Dunn 1961)."""
    return 1 - (1 - test.confidence) / scores


def percent(share: float) -> str:
    """As short as it can be: 95%, 98.33%."""
    return f"{100 * share:.4g}%"


def told(found: Paired, rival: Rival, test: PairedTest, *, passed: bool) -> str:
    """What the test found; where it did not pass, how many rows would show the difference that is seen."""
    if not found.differing:
        return f"the same as {rival.name} on all {found.rows} rows; take another score, or rows that differ"
    words = f"{'better' if found.difference > 0 else 'worse'} than {rival.name} by {abs(found.difference):.4g}"
    words = words if found.difference else f"on average the same as {rival.name}"
    words += f" on {found.rows} rows" + (f" ({found.differing} differ)" if found.differing < found.rows else "")
    if found.rows < test.min_rows:
        return f"{words}: too few for a claim{_more(found, test)}"
    low = "no lower bound" if math.isinf(found.low) else f"lower bound {found.low:+.4g}"
    return f"{words}; {low}, p {found.p_value:.2g}" + ("" if passed else _more(found, test))


def needed(found: Paired, test: PairedTest) -> int:
    """The rows that would show the difference that is seen, as this test asks for them."""
    return max(found.needed or 0, test.min_rows)


def _more(found: Paired, test: PairedTest) -> str:
    if found.needed is None:
        return ""
    return f"; about {needed(found, test):,} rows would show a difference of this size"
