"""Stage 4: the base model and the tuned model, side by side on the held-out rows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.forms import answers
from mlflow_ft.job import Job
from mlflow_ft.preparing import guards
from mlflow_ft.preparing.evaluating import Evaluating
from mlflow_ft.records import Evaluator
from mlflow_ft.registry import chosen_evaluators
from mlflow_ft.stages import done, following, worse
from mlflow_ft.values import Data, Score, Scores, Trained

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.judge import JudgedModel

FAILED = "mlflow_ft.failed_evaluators"
"""Tag with the evaluators that have no scores, and why."""
ROWS_FILE = "eval/rows.json"
"""The artifact with the scores of every held-out row, to compare two models row by row."""


def evaluate(job: Job, data: Data, trained: Trained) -> Scores:
    """Score both models from their files on disk, log `eval/base/...`, `eval/tuned/...` and a table of answers.

    A complete evaluation is not repeated.
    """
    if (recorded := done.kept(job.folder / "evaluate", Scores)) is not None:
        return recorded
    from mlflow_ft.engine import ranks
    from mlflow_ft.engine.judging import judge

    job.run.begin("evaluate")
    evaluators = chosen(job, data)
    guarding = {name: on_rows(chosen(job, guard)) for name, guard in data.guards.items()}
    ranks.call(following.JUDGE, trained)
    evaluating = Evaluating(job.registry, job.progress, trained=trained.adapter or trained.model)
    judged, answered = {}, {}
    for subject in judge.subjects(job, data, trained):
        judged[subject.name] = list(_scores(evaluators, guarding, subject, data, evaluating))
        answered[subject.name] = subject.answers  # generated here, while the model is in memory
    scores = Scores(
        base=evaluating.without_failed(judged["base"]),
        tuned=evaluating.without_failed(judged["tuned"]),
        answers=tuple(zip(answered["base"], answered["tuned"], strict=True)),
    )
    if evaluating.failed:
        job.run.set_tags({FAILED: "; ".join(f"{name}: {why}" for name, why in evaluating.failed.items())})
    for name, model_scores in (("base", scores.base), ("tuned", scores.tuned)):
        log_scores(job, data, name, model_scores)
        done.finish(job.folder / "evaluate" / name, as_metrics(name, model_scores))
    job.run.table(answers.table(scores), "eval/answers.json")
    began = trained.base.whole_name if job.config.model.init_from else ""
    record = row_scores(scores, data, job.config) | {
        "aims": job.registry.trainers[job.config.method].scores,
        "base_model": trained.base.whole_name,
    }
    job.run.artifact_text(json.dumps(record), ROWS_FILE)
    verdict = worse.find(job, scores, record["scores"], tokens=len(data.tokenizer), began=began)
    scores = replace(scores, worse=verdict)
    job.plugins.watch("after_evaluate", job=job, scores=scores)
    done.keep(job.folder / "evaluate", scores)
    if scores.worse and scores.worse.broken:  # no form of it could be compared
        worse.refuse(job, trained, scores)
    return scores


def chosen(job: Job, data: Data) -> list[Evaluator]:
    """The evaluators in the configuration, else all that apply to the held-out rows.

    Raises:
        ConfigError: a name is not registered.
    """
    names = job.config.evaluation.evaluators
    evaluators = chosen_evaluators(job.registry, names, task=job.task)
    return [evaluator for evaluator in evaluators if names is not None or evaluator.applies(data)]


def on_rows(evaluators: Sequence[Evaluator]) -> list[Evaluator]:
    """Those that score the rows they are given, not rows of their own."""
    return [evaluator for evaluator in evaluators if not evaluator.own_rows]


def _scores(
    evaluators: Sequence[Evaluator],
    guarding: Mapping[str, Sequence[Evaluator]],
    subject: JudgedModel,
    data: Data,
    evaluating: Evaluating,
) -> Iterator[tuple[str, str, Score]]:
    """The guard set ("" for the held-out rows), the evaluator and the score, of one model."""
    for evaluator in evaluators:
        for score in evaluating.scores(evaluator, subject):
            yield "", evaluator.name, score
    yield from guards.scores(subject, data, guarding, evaluating)


def of_champion(job: Job, data: Data, subject: JudgedModel) -> list[Score]:
    """The scores of a model that was not trained by this job, on its held-out rows and guard sets."""
    evaluating = Evaluating(job.registry, job.progress)
    guarding = {name: on_rows(chosen(job, guard)) for name, guard in data.guards.items()}
    return [score for _, _, score in _scores(on_rows(chosen(job, data)), guarding, subject, data, evaluating)]


def log_scores(job: Job, data: Data, name: str, scores: Sequence[Score], *, model_id: str | None = None) -> None:
    """Log a model's scores as metrics, each linked to its rows, unless they are the evaluator's own."""
    for guard in ("", *data.guards):
        metrics = as_metrics(name, [score for score in scores if score.guard == guard and not score.digest])
        rows = data.guards[guard].eval if guard else data.eval
        job.run.metrics(metrics, model_id=model_id, dataset=rows)
    if own := [score for score in scores if score.digest]:
        job.run.metrics(as_metrics(name, own), model_id=model_id)


def as_metrics(name: str, scores: Sequence[Score]) -> dict[str, float]:
    """Scores as metrics: `eval/<model>/<score>`, and the coverage if some rows could not be scored."""
    values = {f"eval/{name}/{score.name}": score.value for score in scores}
    values |= {f"eval/{name}/{score.name}_coverage": score.coverage for score in scores if score.coverage < 1}
    return values


def row_scores(scores: Scores, data: Data, config: Config) -> dict[str, Any]:
    """The row values of every score that is a mean over rows, in the rows' order, and the rows' digests.

    Guard sets have no row values here.
    """
    return {
        "digest": data.eval.digest,
        "guards": guards.digests(data),
        "digests": {score.name: score.digest for score in scores.tuned if score.digest},
        "measured_by": {score.name: score.measured_by for score in scores.tuned if score.measured_by},
        "lower_is_better": {
            score.name: score.lower_is_better for score in scores.tuned if score.lower_is_better is not None
        },
        "scores": {
            name: {
                score.name: [_finite(row) for row in by_conversation(score, data, config)]
                for score in model_scores
                if score.rows and not score.guard
            }
            for name, model_scores in (("base", scores.base), ("tuned", scores.tuned))
        },
    }


def by_conversation(score: Score, data: Data, config: Config) -> tuple[float | None, ...]:
    """The values of a score's rows; if `data.turns` made a held-out row of each turn, one mean value per conversation.

    The test that compares two models assumes independent rows, which the turns of one conversation are not.
    """
    rows = score.rows
    if config.data.turns != "each" or score.digest:
        return rows
    from mlflow_ft.engine.judging import judge

    examples = list(data.eval.examples)
    answered = list(itertools.islice(filter(judge.answerable, examples), config.evaluation.max_rows))
    judged = next((candidates for candidates in (examples, answered) if len(candidates) == len(rows)), None)
    if judged is None:  # the evaluator chose its own rows
        return rows
    groups: list[list[float | None]] = []
    for number, (example, value) in enumerate(zip(judged, rows, strict=True)):
        before = judged[number - 1].messages if number else ()
        if not before or example.messages[: len(before)] != before:
            groups.append([])
        groups[-1].append(value)
    known = [[value for value in group if value is not None] for group in groups]
    return tuple(sum(values) / len(values) if values else None for values in known)


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON does not have: such a row has no score."""
    return value if value is not None and math.isfinite(value) else None
