"""The evaluator: marks by rubrics, and the comparison with the base; failures are counted, many withhold a score."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlflow_ft import Answer, Score, Subject, brief
from mlflow_ft_judge import settings
from mlflow_ft_judge.engine import comparing, marking
from mlflow_ft_judge.engine.asking import Account, Asked, reasons
from mlflow_ft_judge.engine.cache import VERSION
from mlflow_ft_judge.engine.comparing import Comparison
from mlflow_ft_judge.engine.marking import Marks
from mlflow_ft_judge.settings import JudgeOptions, Rubric

PREFIX = "judge/"


@dataclass(kw_only=True)
class Judged:
    """Everything that was judged about one model."""

    answers: Sequence[Answer]
    base: Sequence[Answer]
    options: JudgeOptions
    judges: Sequence[str]
    """The names of the judging models."""
    accounts: Sequence[Account]
    marks: list[Marks] = field(default_factory=list)
    comparison: Comparison | None = None
    withheld: dict[str, str] = field(default_factory=dict)
    """The scores that are withheld, each with the reason."""

    def total(self, name: str) -> int:
        """A count, over all judges."""
        return sum(getattr(account, name) for account in self.accounts)


def evaluate(subject: Subject, options: JudgeOptions) -> Sequence[Score]:
    """Judge one model's answers: all scores, `judge/...`.

    Raises:
        ConfigError: the settings name no judge, or a rubric cannot be used.
    """
    rubrics, judges = settings.rubrics(options), settings.judges(options)
    answers = list(subject.answers)[: options.max_rows]
    base = list(subject.base_answers)[: options.max_rows]
    if not answers:
        return []
    asked = [Asked(judge, options) for judge in judges]
    judged = Judged(
        answers=answers,
        base=base,
        options=options,
        judges=[judge.model for judge in judges],
        accounts=[judge.account for judge in asked],
    )
    compares = options.pairwise and subject.name == "tuned" and len(base) == len(answers)
    total = len(answers) * (len(rubrics) * options.repeats + 2 * compares) * len(judges)
    try:
        with subject.progress.bar(f"judge {subject.name}", total=total, unit="questions") as bar:
            for rubric in rubrics:
                judged.marks.append(marking.mark(rubric, answers, asked, repeats=options.repeats, done=bar.advance))
            if compares:
                texts = [answer.text for answer in base]
                judged.comparison = comparing.compare(answers, texts, asked, done=bar.advance)
    finally:
        for judge in asked:
            judge.close()
    scores = list(_scores(judged, is_base=subject.name == "base" and options.pairwise))
    _tell(subject, judged)
    if subject.run and options.traces:
        _show(subject, judged, asked)
    return scores


def _scores(judged: Judged, *, is_base: bool) -> Sequence[Score]:
    scores: list[Score] = []
    for marks in judged.marks:
        score = _score(f"{PREFIX}{marks.rubric.name}", marks.rows, judged)
        scores.append(replace(score, measured_by=identity(judged, marks.rubric)))
        if agreement := marks.agreement:
            scores += _agreement(marks.rubric.name, *agreement)
    if is_base:  # against itself; so that a paired test asks whether the tuned model wins more often than not
        against_itself = Score.mean(f"{PREFIX}win_rate", [comparing.TIE] * len(judged.answers))
        scores.append(replace(against_itself, measured_by=identity(judged)))
    if judged.comparison:
        scores += _compared(judged, judged.comparison)
    unjudged = sum(row is None for rows in _all_rows(judged) for row in rows)
    counts = {"not_judged": unjudged, "tokens_in": judged.total("tokens_in"), "tokens_out": judged.total("tokens_out")}
    scores += _numbers(counts)
    if judged.options.price_in or judged.options.price_out:
        scores += _numbers({"cost": sum(account.cost(judged.options) for account in judged.accounts)})
    return scores


def _compared(judged: Judged, comparison: Comparison) -> list[Score]:
    rate = replace(_score(f"{PREFIX}win_rate", comparison.rows, judged), measured_by=identity(judged))
    if rate.name in judged.withheld:
        return [rate]
    wins, ties, losses = comparing.shares(rate.rows)
    numbers = {"wins": wins, "ties": ties, "losses": losses}
    numbers |= {"order_agreement": comparison.order_agreement, "position_bias": comparison.position_bias}
    if agreement := comparison.judge_agreement:
        return [rate, *_numbers(numbers), *_agreement("win_rate", *agreement)]
    return [rate, *_numbers(numbers)]


def _score(name: str, rows: Sequence[float | None], judged: Judged) -> Score:
    """The mean over the rows; NaN, without any row, if too many could not be judged."""
    missing = sum(row is None for row in rows)
    if missing > judged.options.max_failures * len(rows):
        judged.withheld[name] = (
            f"{missing} of {len(rows)} rows could not be judged ({reasons(judged.accounts)}); "
            f"plugins.judge.max_failures allows {judged.options.max_failures:.0%}"
        )
        return Score.mean(name, [None] * len(rows))
    return Score.mean(name, rows)


def identity(judged: Judged, rubric: Rubric | None = None) -> str:
    """The judges, and a hash of the rubric, or of the answers that were compared with."""
    texts = (
        [answer.text for answer in judged.base] if rubric is None else [rubric.instructions, *map(str, rubric.scale)]
    )
    asked = [str(VERSION), str(judged.options.temperature), *texts]
    return f"{' and '.join(judged.judges)} ({hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]})"


def _agreement(name: str, share: float, kappa: float) -> list[Score]:
    return _numbers({f"{name}_agreement": share, f"{name}_kappa": kappa})


def _numbers(values: Mapping[str, float]) -> list[Score]:
    """Scores that are no mean over rows; what is not known is left out."""
    known = {name: float(value) for name, value in values.items() if not math.isnan(value)}
    return [Score(name=f"{PREFIX}{name}", value=value) for name, value in known.items()]


def _all_rows(judged: Judged) -> list[list[float | None]]:
    return [marks.rows for marks in judged.marks] + ([judged.comparison.rows] if judged.comparison else [])


# --- what is told and kept


def _tell(subject: Subject, judged: Judged) -> None:
    where = f"{subject.data.eval.name} rows" if subject.data.eval.name != "eval" else "held-out rows"
    for name, reason in judged.withheld.items():
        subject.progress.warn(f"{name} of {subject.name} is withheld: {reason}")
    failed = sum(account.failures.total() for account in judged.accounts)
    if failed and not judged.withheld:
        subject.progress.warn(f"{failed} questions about {subject.name} have no verdict: {reasons(judged.accounts)}")
    subject.progress.say(f"judged {len(judged.answers)} answers of {subject.name} ({where}): {spent(judged)}")
    if subject.run:
        guard = "" if subject.data.eval.name == "eval" else f"{subject.data.eval.digest[:8]}_"
        subject.run.table(table(judged), f"eval/judge/{guard}{subject.name}.json")


def _show(subject: Subject, judged: Judged, asked: Sequence[Asked]) -> None:
    """The first answers as traces; without them nothing is lost but the view."""
    from mlflow_ft_judge.engine import traces

    shown = judged.answers[: judged.options.traces]
    try:
        traces.show(subject.name, shown, asked, marks=judged.marks, comparison=judged.comparison)
    except Exception as error:  # whatever MLflow raises: the scores are known, and the table is kept
        subject.progress.warn(f"the judged answers of {subject.name} are not shown as traces: {brief(error)}")


def spent(judged: Judged) -> str:
    """What judging has cost, in words."""
    parts = [
        f"{judged.total('requests'):,} requests",
        f"{judged.total('cached'):,} replies from the cache",
        f"{judged.total('tokens_in'):,} tokens read and {judged.total('tokens_out'):,} written",
    ]
    if judged.options.price_in or judged.options.price_out:
        parts.append(f"cost {sum(account.cost(judged.options) for account in judged.accounts):.4g}")
    for name, words in (("retried", "repeated"), ("asked_again", "asked again for a verdict")):
        if count := judged.total(name):
            parts.append(f"{count:,} {words}")
    return ", ".join(parts)


def table(judged: Judged) -> list[dict[str, Any]]:
    """A row for each answer: the texts, every mark and verdict with its reason."""
    rows: list[dict[str, Any]] = []
    for number, answer in enumerate(judged.answers):
        row: dict[str, Any] = {"prompt": answer.asked, "expected": answer.expected, "answer": answer.text}
        for marks in judged.marks:
            row |= _marks_of(marks, number)
        if judged.comparison:
            row |= {"base": judged.base[number].text} | _pair_of(judged.comparison, number)
        rows.append(row)
    return rows


def _marks_of(marks: Marks, number: int) -> dict[str, Any]:
    name, row = marks.rubric.name, dict[str, Any]()
    for reading, judgements in enumerate(marks.readings, 1):
        label = name if len(marks.readings) == 1 else f"{name} {reading}"
        row |= {label: judgements[number].value, f"{label}, reason": judgements[number].reason}
    return row


def _pair_of(comparison: Comparison, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for judge, pairs in enumerate(comparison.by_judge, 1):
        label = "win" if len(comparison.by_judge) == 1 else f"win {judge}"
        second, first = pairs[number].ours_second, pairs[number].ours_first
        row |= {label: pairs[number].result}
        row |= {f"{label}, base as A": second.value, f"{label}, base as A, reason": second.reason}
        row |= {f"{label}, tuned as A": first.value, f"{label}, tuned as A, reason": first.reason}
    return row
