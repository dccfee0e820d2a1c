"""Several runs beside each other: what differed, which scores, and on which rows each is the best."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow_ft.candidacy import aimed_at
from mlflow_ft.config.gates import Gates
from mlflow_ft.forms import changes
from mlflow_ft.forms.report.facts import Answer, Facts
from mlflow_ft.tracking.environment import versions
from mlflow_ft.values import Score

LETTERS = string.ascii_uppercase[:12]
"""What the runs are called; more than these cannot be told apart in a picture."""
SETTING = "cfg."
NO_MATTER = ("cfg.run.", "cfg.registry.")
"""Settings that say where results go."""
RECORDED = {
    "mlflow_ft.data_fingerprint": "data",
    "mlflow_ft.base_origin": "base model",
    "mlflow_ft.base_revision": "revision of the base model",
    "mlflow_ft.git_commit": "git commit",
    "mlflow.mlflow_ft.code": "code of mlflow-ft",
    "mlflow_ft.device": "device",
    "mlflow_ft.plugins": "plugins",
}
"""Tags that say what a run was made of."""
ABSENT = "-"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One score of all runs."""

    name: str
    values: Sequence[float | None]
    best: int | None
    """The run with the best value; None if runs share it, or were scored on different rows."""
    beyond_doubt: bool
    """Whether that run is better than each other one in a paired test."""
    changes: Sequence[str]
    """For each run but the first, its difference from the first with an interval, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Wins:
    """On how many rows each run has the best value of a score alone, and on how many the best is shared."""

    score: str
    alone: Sequence[int]
    shared: int


def differing(runs: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """Every setting and every part of the run that is not the same in all runs: its name, and its values."""
    named = [
        {name.removeprefix(SETTING): value for name, value in one.run.data.params.items() if _matters(name)}
        | {words: one.tags[tag] for tag, words in RECORDED.items() if tag in one.tags}
        | {f"{package} (version)": version for package, version in versions(one.tags).items()}
        for one in runs
    ]
    names = dict.fromkeys(name for values in named for name in values)
    rows = [(name, [values.get(name, ABSENT) for values in named]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _matters(param: str) -> bool:
    return param.startswith(SETTING) and not param.startswith(NO_MATTER)


def lines(runs: Sequence[Facts], gates: Gates) -> list[Line]:
    """Every score that at least one run has; `gates` know which are better when lower.

    Tests of one run against several others share the 5 % (Bonferroni), so that the best of many is not called better
    by luck.
    """
    confidence = 1 - (1 - changes.CONFIDENCE) / max(1, len(runs) - 1)
    tuned = [{score.name: score for score in one.tuned} for one in runs]
    names = dict.fromkeys(name for scores in tuned for name in scores)
    return [_line(name, runs, [scores.get(name) for scores in tuned], gates, confidence) for name in names]


def _line(name: str, runs: Sequence[Facts], scores: Sequence[Score | None], gates: Gates, confidence: float) -> Line:
    values = [score.value if score else None for score in scores]
    same = len({one.rows.get(name) for one, score in zip(runs, scores, strict=True) if score}) == 1
    known = {number: value for number, value in enumerate(values) if value is not None and math.isfinite(value)}
    best = None
    if same and known:
        first = next(score for score in scores if score)
        top = (min if first.is_lower(gates) else max)(known.values())
        at_top = [number for number, value in known.items() if value == top]
        best = at_top[0] if len(at_top) == 1 and len(known) > 1 else None
    others = [score for number, score in enumerate(scores) if number != best]
    beyond = best is not None and all(_is_better(scores[best], score, gates, confidence) for score in others)
    differences = [_difference(scores[0], score, gates, confidence, same=same) for score in scores[1:]]
    return Line(name=name, values=values, best=best, beyond_doubt=beyond, changes=differences)


def _is_better(ours: Score | None, theirs: Score | None, gates: Gates, confidence: float) -> bool:
    if ours is None or theirs is None:
        return False
    low = changes.between(theirs, ours, gates, confidence=confidence).low
    return low is not None and low > 0


def _difference(first: Score | None, score: Score | None, gates: Gates, confidence: float, *, same: bool) -> str:
    if first is None or score is None:
        return ""
    if not same:
        return "other rows"
    return str(changes.between(first, score, gates, confidence=confidence))


def verdict(runs: Sequence[Facts], scored: Sequence[Line]) -> tuple[str, str]:
    """The first line of the page, and its tone: which run is the best by the score that the runs are for."""
    rows = [{score.name: score.rows for score in one.tuned if score.rows} for one in runs]
    aim = aimed_at(runs[0].aims, *rows)
    line = next((line for line in scored if line.name == aim), None)
    if line is None:
        return "These runs have no score with values of the same rows: they cannot be compared", "warn"
    if len({one.rows.get(line.name) for one in runs}) > 1:
        return f"These runs were scored on different held-out rows: their {line.name} cannot be compared", "warn"
    if line.best is None:
        return f"No run is the best: two or more have the same {line.name}", "warn"
    letter = LETTERS[line.best]
    if line.beyond_doubt:
        return f"{letter} is the best: its {line.name} is better than that of every other run", "ok"
    return f"{letter} has the best {line.name}, but is not shown to be better than every other run", "warn"


def wins(runs: Sequence[Facts], scored: Sequence[Line], gates: Gates) -> list[Wins]:
    """Row by row, for each score that all runs have on the same rows."""
    return list(filter(None, (_wins(runs, line.name, gates) for line in scored)))


def _wins(runs: Sequence[Facts], name: str, gates: Gates) -> Wins | None:
    scores = [next((score for score in one.tuned if score.name == name and score.rows), None) for one in runs]
    found = [score for score in scores if score is not None]
    same_rows = len({one.rows.get(name) for one in runs}) == 1 and len({len(score.rows) for score in found}) == 1
    if len(found) < len(runs) or not same_rows:
        return None
    better = min if found[0].is_lower(gates) else max
    alone, shared = [0] * len(runs), 0
    for row in zip(*(score.rows for score in found), strict=True):
        values = [value for value in row if value is not None and math.isfinite(value)]
        if len(values) < len(runs):
            continue
        at_top = [number for number, value in enumerate(values) if math.isclose(value, better(values), rel_tol=1e-6)]
        if len(at_top) == 1:
            alone[at_top[0]] += 1
        else:
            shared += 1
    return Wins(score=name, alone=alone, shared=shared)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A held-out prompt with the answers of all runs."""

    prompt: str
    expected: str
    answers: Sequence[str]
    exact: Sequence[bool]
    """Whether each is what is expected, character by character."""


def answers(runs: Sequence[Facts]) -> list[Asked]:
    """The prompts that all runs answered: first those on which some are right and some wrong."""
    by_prompt = [_by_prompt(one.answers) for one in runs]
    common = [key for key in by_prompt[0] if all(key in rows for rows in by_prompt)] if by_prompt else []
    found = [_asked([rows[key] for rows in by_prompt]) for key in common]
    return sorted(found, key=lambda one: (len(set(one.exact)) == 1, len(set(one.answers)) == 1))


def _by_prompt(rows: Sequence[Answer]) -> dict[tuple[str, str, int], Answer]:
    """Rows by prompt, what is expected, and how many with the same come before."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for row in rows:
        key = str(row["prompt"]), str(row["expected"] or "")
        found[*key, seen[key]] = row
        seen[key] += 1
    return found


def _asked(rows: Sequence[Answer]) -> Asked:
    return Asked(
        prompt=str(rows[0]["prompt"]),
        expected=str(rows[0]["expected"] or ""),
        answers=[str(row["tuned"]) for row in rows],
        exact=[bool(row.get("tuned_exact")) for row in rows],
    )


def drawn(runs: Sequence[Facts], name: str) -> Iterator[tuple[str, Mapping[int, float]]]:
    """A curve of each run that has it, by the run's letter."""
    for letter, one in zip(LETTERS, runs, strict=False):
        if curve := one.curve(name):
            yield letter, curve
