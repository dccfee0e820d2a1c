"""Whether a training made its model worse: said at once, kept with the run, in the card, and no alias is given."""

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
"""A training that changes nothing is called worse in one case of a hundred."""
OVERWHELMING = 1.0
"""Nats per token that every held-out row must lose, on average, where the rows are too few for the test."""
RUINED = 2.0
"""Nats per token by which a model guesses worse than one that finds all tokens alike."""
LOSSES = ("loss", "good_loss")
WORSE = "the tuned model is worse than its base"
TAG = "mlflow_ft.worse"
REFUSED = "mlflow_ft.refused"


def look(job: Job, scores: Scores, rows: Mapping[str, Rows], *, tokens: int, began: str = "") -> Worse | None:
    """Compare the tuned model with its base by the score that the method is for; None where it is not worse.

    What is worse beyond chance is a warning and a tag of the run; what may be chance is said, no more.

    Args:
        rows: Of `base` and `tuned` the values that the run keeps in `eval/rows.json`.
        tokens: Of the tokenizer.
        began: Names the base where it was trained before.
    """
    base = {one.name: one for one in scores.base if not one.guard}
    tuned = {one.name: one for one in scores.tuned if not one.guard}
    found = broken(base, tuned) or by_rows(job, base, tuned, rows)
    if found is None or not found.sure:
        found = ruined(base, tuned, tokens) or found
    if found is None:
        return None
    if began:
        found = replace(found, sentence=found.sentence.replace(WORSE, f"{WORSE} ({began})", 1))
    if not found.sure:
        job.progress.say(found.sentence)
        return found
    job.progress.warn(found.sentence)
    job.run.set_tags({TAG: found.sentence})
    _describe(job, f"**Worse than its base.** {found.sentence}.")
    return found


def _describe(job: Job, text: str) -> None:
    """Put a text before the run's description in MLflow's UI."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    known = job.run.read().data.tags.get(MLFLOW_RUN_NOTE, "")
    job.run.set_tags({MLFLOW_RUN_NOTE: f"{text}\n\n{known}".strip()})


def refused(job: Job, scores: Scores) -> bool:
    """Whether the model is not to get the alias."""
    return bool(scores.worse and scores.worse.sure and job.config.evaluation.on_worse == "refuse")


def version_tags(job: Job, scores: Scores) -> dict[str, str]:
    """What the versions say of it."""
    if not (scores.worse and scores.worse.sure):
        return {}
    return {TAG: scores.worse.sentence} | ({REFUSED: "worse than its base"} if refused(job, scores) else {})


def refuse(job: Job, trained: Trained, scores: Scores, versions: Sequence[Version] = ()) -> None:
    """Raise RefusedError where the model is worse beyond chance, and `evaluation.on_worse` says refuse."""
    if not refused(job, scores) or scores.worse is None:
        return
    job.run.begin("evaluate")
    job.run.set_tags({REFUSED: "worse than its base"})
    job.progress.table("Held-out rows", ["score", "base", "tuned"], side_by_side(scores))
    names = " and ".join(f"{one.name} version {one.version}" for one in versions)
    kept = f"registered without the alias {job.config.registry.alias}: {names}" if names else "nothing was registered"
    weights = trained.adapter or trained.model
    raise RefusedError(
        scores.worse.sentence,
        hint=f"{kept}. The trained weights are in {weights}. Lower training.learning_rate (it is "
        f"{job.config.training.learning_rate:g}), train fewer steps, look at the data; or give the alias all the same "
        "with --evaluation.on_worse warn",
    )


def side_by_side(scores: Scores) -> list[list[str]]:
    """A row for each score: its name, the base model's value, the tuned one's."""
    tuned = {score.name: score.value for score in scores.tuned}
    return [[one.name, f"{one.value:.4g}", f"{tuned.get(one.name, math.nan):.4g}"] for one in scores.base]


# --- what counts as worse


def broken(base: Mapping[str, Score], tuned: Mapping[str, Score]) -> Worse | None:
    """A loss that is NaN or infinite, and was not before."""
    for name in LOSSES:
        before, after = base.get(name), tuned.get(name)
        if before and after and math.isfinite(before.value) and not math.isfinite(after.value):
            return Worse(score=name, sure=True, broken=True, sentence=f"{WORSE}: {_change(before, after)}")
    return None


def by_rows(job: Job, base: Mapping[str, Score], tuned: Mapping[str, Score], rows: Mapping[str, Rows]) -> Worse | None:
    """Worse on the method's own score, by the test that promotions ask for."""
    from mlflow_ft.engine.judging.paired import paired_test, row_differences

    aims = job.registry.trainers[job.config.method].scores
    before, after = rows["base"], rows["tuned"]
    name = aimed_at(aims, before, after)
    if name is None or name not in (*aims, *CHOICE) or len(before[name]) != len(after[name]):
        return None
    worse_by = row_differences(before[name], after[name], lower_is_better=_lower(job, name))
    if not worse_by or sum(worse_by) <= 0:
        return None
    found = paired_test(worse_by, margin=0.0, confidence=CONFIDENCE)
    every = all(one > 0 for one in worse_by)
    overwhelming = name in LOSSES and every and found.difference >= OVERWHELMING
    sure = found.low > 0 or overwhelming
    share = "all of them" if every else f"{sum(one > 0 for one in worse_by)} of them"
    test = "" if overwhelming else f", p {found.p_value:.2g}"
    more = "" if sure else f"; that may be chance, and about {found.needed:,} rows would show it"
    return Worse(
        score=name,
        sure=sure,
        sentence=f"{WORSE}: {_change(base[name], tuned[name])}, on {found.rows} held-out rows (worse on {share}, by "
        f"{found.difference:.4g} on average{test}){more}",
    )


def ruined(base: Mapping[str, Score], tuned: Mapping[str, Score], tokens: int) -> Worse | None:
    """A language model that finds held-out answers less likely than one that guesses among all tokens alike.

    That is said of methods with another aim too: pairs can be told apart by a model that writes nothing any more.
    """
    guess = math.log(max(2, tokens))
    for name in LOSSES:
        before, after = base.get(name), tuned.get(name)
        if not (before and after and math.isfinite(before.value)):
            continue
        lost = sum(row is None or row > guess for row in after.rows)  # one row may be odd, most are not
        if after.value > max(before.value, guess) + RUINED and 2 * lost > len(after.rows):
            words = f"{_change(before, after)}, and {guess:.4g} for a guess among all {tokens:,} tokens"
            return Worse(score=name, sure=True, sentence=f"{WORSE}, and than guessing: {words}")
    return None


def _change(before: Score, after: Score) -> str:
    return f"{before.name} {before.value:.4g} before, {after.value:.4g} after"


def _lower(job: Job, name: str) -> bool:
    """Whether the score is better when it is lower, as the job's own gates file knows, too."""
    file = job.config.registry.gates
    return (gates_file(file.expanduser()) if file else Gates()).lower(name)
