"""Whether training made the model worse: reported, recorded in the run and the card, and no alias is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.candidacy import CHOICE, Rows, aimed_at
from mlflow_ft.config.gates import Gates, gates_file
from mlflow_ft.errors import RefusedError
from mlflow_ft.job import Job
from mlflow_ft.values import Scores, Trained, Version, Worse

if TYPE_CHECKING:
    from mlflow_ft.values import Score

CONFIDENCE = 0.99
"""Training that changes nothing is called worse in one case of a hundred."""
OVERWHELMING = 1.0
"""Mean loss increase (nats per token) that counts, if every row is worse, even with too few rows for the test."""
RUINED = 2.0
"""Nats per token by which the loss exceeds that of guessing uniformly among all tokens."""
LOSSES = ("loss", "good_loss")
WORSE = "the tuned model is worse than its base"
TAG = "mlflow_ft.worse"
REFUSED = "mlflow_ft.refused"


def find(job: Job, scores: Scores, rows: Mapping[str, Rows], *, tokens: int, began: str = "") -> Worse | None:
    """Compare the tuned model with its base by the score that the method is for; None if it is not worse.

    A significant loss is a warning and a tag of the run; one that may be chance is only printed.

    Args:
        rows: For `base` and `tuned`, the values that the run keeps in `eval/rows.json`.
        tokens: Size of the tokenizer's vocabulary.
        began: Names the base, if it was trained before.
    """
    base = {score.name: score for score in scores.base if not score.guard}
    tuned = {score.name: score for score in scores.tuned if not score.guard}
    worse = broken(base, tuned) or by_rows(job, base, tuned, rows)
    if worse is None or not worse.sure:
        worse = ruined(base, tuned, tokens) or worse
    if worse is None:
        return None
    if began:
        worse = replace(worse, sentence=worse.sentence.replace(WORSE, f"{WORSE} ({began})", 1))
    if not worse.sure:
        job.progress.say(worse.sentence)
        return worse
    job.progress.warn(worse.sentence)
    job.run.set_tags({TAG: worse.sentence})
    _describe(job, f"**Worse than its base.** {worse.sentence}.")
    return worse


def _describe(job: Job, text: str) -> None:
    """Prepend a text to the run's description in MLflow's UI."""
    from mlflow_ft.tracking import NOTE

    note = job.run.read().data.tags.get(NOTE, "")
    job.run.set_tags({NOTE: f"{text}\n\n{note}".strip()})


def refused(job: Job, scores: Scores) -> bool:
    """Whether the model is denied the alias."""
    return bool(scores.worse and scores.worse.sure and job.config.evaluation.on_worse == "refuse")


def version_tags(job: Job, scores: Scores) -> dict[str, str]:
    """The tags of the versions about it."""
    if not (scores.worse and scores.worse.sure):
        return {}
    return {TAG: scores.worse.sentence} | ({REFUSED: "worse than its base"} if refused(job, scores) else {})


def refuse(job: Job, trained: Trained, scores: Scores, versions: Sequence[Version] = ()) -> None:
    """Raise RefusedError if the model is significantly worse and `evaluation.on_worse` is refuse."""
    if not refused(job, scores) or scores.worse is None:
        return
    job.run.begin("evaluate")
    job.run.set_tags({REFUSED: "worse than its base"})
    job.progress.table("Held-out rows", ["score", "base", "tuned"], side_by_side(scores))
    names = " and ".join(f"{version.name} version {version.version}" for version in versions)
    result = f"registered without the alias {job.config.registry.alias}: {names}" if names else "nothing was registered"
    weights = trained.adapter or trained.model
    raise RefusedError(
        scores.worse.sentence,
        hint=f"{result}. The trained weights are in {weights}. Lower training.learning_rate (it is "
        f"{job.config.training.learning_rate:g}), train fewer steps, or check the data; --evaluation.on_worse warn "
        "gives the alias anyway",
    )


def side_by_side(scores: Scores) -> list[list[str]]:
    """A row for each score: its name, the base model's value, the tuned model's."""
    tuned = {score.name: score.value for score in scores.tuned}
    return [[score.name, f"{score.value:.4g}", f"{tuned.get(score.name, math.nan):.4g}"] for score in scores.base]


# --- what counts as worse


def broken(base: Mapping[str, Score], tuned: Mapping[str, Score]) -> Worse | None:
    """A NaN or infinite loss that was finite before training."""
    for name in LOSSES:
        before, after = base.get(name), tuned.get(name)
        if before and after and math.isfinite(before.value) and not math.isfinite(after.value):
            return Worse(score=name, sure=True, broken=True, sentence=f"{WORSE}: {_change(before, after)}")
    return None


def by_rows(job: Job, base: Mapping[str, Score], tuned: Mapping[str, Score], rows: Mapping[str, Rows]) -> Worse | None:
    """Worse on the method's own score, by the test that promotions use."""
    from mlflow_ft.engine.judging.paired import paired_test, row_differences

    aims = job.registry.trainers[job.config.method].scores
    before, after = rows["base"], rows["tuned"]
    name = aimed_at(aims, before, after)
    if name is None or name not in (*aims, *CHOICE) or len(before[name]) != len(after[name]):
        return None
    worse_by = row_differences(before[name], after[name], lower_is_better=_lower(job, tuned[name]))
    if not worse_by or sum(worse_by) <= 0:
        return None
    test = paired_test(worse_by, margin=0.0, confidence=CONFIDENCE)
    every = all(difference > 0 for difference in worse_by)
    overwhelming = name in LOSSES and every and test.difference >= OVERWHELMING
    sure = test.low > 0 or overwhelming
    share = "all of them" if every else f"{sum(difference > 0 for difference in worse_by)} of them"
    p_value = "" if overwhelming else f", p {test.p_value:.2g}"
    caveat = "" if sure else f"; this may be chance: about {test.needed:,} rows would be needed to tell"
    return Worse(
        score=name,
        sure=sure,
        sentence=f"{WORSE}: {_change(base[name], tuned[name])}, on {test.rows} held-out rows (worse on {share}, by "
        f"{test.difference:.4g} on average{p_value}){caveat}",
    )


def ruined(base: Mapping[str, Score], tuned: Mapping[str, Score], tokens: int) -> Worse | None:
    """A language model with a higher held-out loss than guessing uniformly among all tokens.

    Checked for methods with another aim too: a model that no longer generates text may still rank pairs.
    """
    guess = math.log(max(2, tokens))
    for name in LOSSES:
        before, after = base.get(name), tuned.get(name)
        if not (before and after and math.isfinite(before.value)):
            continue
        lost = sum(row is None or row > guess for row in after.rows)  # a single row may be unusual, most are not
        if after.value > max(before.value, guess) + RUINED and 2 * lost > len(after.rows):
            change = f"{_change(before, after)}; guessing among all {tokens:,} tokens has {guess:.4g}"
            return Worse(score=name, sure=True, sentence=f"{WORSE} and than guessing: {change}")
    return None


def _change(before: Score, after: Score) -> str:
    return f"{before.name} {before.value:.4g} before, {after.value:.4g} after"


def _lower(job: Job, score: Score) -> bool:
    """Whether lower is better for the score, also by the job's own gates file."""
    file = job.config.registry.gates
    gates = gates_file(file.expanduser()) if file else Gates()
    return score.is_lower(gates.knowing(job.registry.lower_is_better))
