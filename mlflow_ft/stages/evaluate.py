"""Stage 4: the base model and the tuned one, side by side on the held-out rows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.job import Job
from mlflow_ft.preparing import guards
from mlflow_ft.records import Evaluator
from mlflow_ft.stages import done, worse
from mlflow_ft.values import Answer, Data, Score, Scores, Subject, Trained

ROWS_FILE = "eval/rows.json"
"""The artifact with the scores of every held-out row, by which two models are compared row by row."""


def evaluate(job: Job, data: Data, trained: Trained) -> Scores:
    """Score both models from their files on disk, log `eval/base/...`, `eval/tuned/...` and a table of answers."""
    from mlflow_ft.engine.judging import judge

    job.run.begin("evaluate")
    evaluators = chosen(job, data)
    guarding = {name: chosen(job, guard) for name, guard in data.guards.items()}
    judged = {
        subject.name: _judge(evaluators, subject, guards.scores(subject, data, guarding))
        for subject in judge.subjects(job, data, trained)
    }
    scores = Scores(
        base=judged["base"][0],
        tuned=judged["tuned"][0],
        answers=tuple(zip(judged["base"][1], judged["tuned"][1], strict=True)),
    )
    for name, several in (("base", scores.base), ("tuned", scores.tuned)):
        log_scores(job, data, name, several)
        done.finish(job.folder / "evaluate" / name, as_metrics(name, several))
    job.run.table(table(scores), "eval/answers.json")
    began = trained.base.whole_name if job.config.model.init_from else ""
    kept = row_scores(scores, data, job.config) | {
        "aims": job.registry.trainers[job.config.method].scores,
        "base_model": trained.base.whole_name,
    }
    job.run.artifact_text(json.dumps(kept), ROWS_FILE)
    found = worse.look(job, scores, kept["scores"], tokens=len(data.tokenizer), began=began)
    scores = replace(scores, worse=found)
    job.plugins.watch("after_evaluate", job=job, scores=scores)
    if scores.worse and scores.worse.broken:  # no form of it could be compared
        worse.refuse(job, trained, scores)
    return scores


def chosen(job: Job, data: Data) -> list[Evaluator]:
    """The evaluators that were named, or else every one that applies to the held-out rows.

    Raises:
        ConfigError: a name is not registered.
    """
    names = job.config.evaluation.evaluators
    if names is None:
        return [one for one in job.registry.evaluators if one.task == job.task and one.applies(data)]
    return [job.registry.evaluators[name] for name in names]


def _judge(
    evaluators: Sequence[Evaluator], subject: Subject, guarded: Iterable[Score]
) -> tuple[tuple[Score, ...], Sequence[Answer]]:
    """The scores of one model, and its answers; asked for here, while the model is in memory."""
    scores = tuple(score for evaluator in evaluators for score in evaluator.evaluate(subject))
    return (*scores, *guarded), subject.answers


def log_scores(job: Job, data: Data, name: str, scores: Sequence[Score], *, model_id: str | None = None) -> None:
    """Log a model's scores as metrics, each linked to the rows that it was found on."""
    for guard in ("", *data.guards):
        found = as_metrics(name, [score for score in scores if score.guard == guard])
        rows = data.guards[guard].eval if guard else data.eval
        job.run.metrics(found, model_id=model_id, dataset=rows)


def as_metrics(name: str, scores: Sequence[Score]) -> dict[str, float]:
    """Scores as metrics: `eval/<model>/<score>`, and its coverage where some rows could not be scored."""
    values = {f"eval/{name}/{score.name}": score.value for score in scores}
    values |= {f"eval/{name}/{score.name}_coverage": score.coverage for score in scores if score.coverage < 1}
    return values


def row_scores(scores: Scores, data: Data, config: Config) -> dict[str, Any]:
    """Of every score that is a mean over held-out rows their values, in the rows' order; and which rows these are."""
    return {
        "digest": data.eval.digest,
        "guards": guards.digests(data),
        "scores": {
            name: {
                score.name: [_finite(row) for row in by_conversation(score.rows, data, config)]
                for score in found
                if score.rows and not score.guard
            }
            for name, found in (("base", scores.base), ("tuned", scores.tuned))
        },
    }


def by_conversation(rows: Sequence[float | None], data: Data, config: Config) -> tuple[float | None, ...]:
    """The values of held-out rows; one value a conversation, their mean, where `data.turns` made a row of each turn.

    Two models are compared by a test that takes rows to be independent, which the turns of one conversation are not.
    """
    if config.data.turns != "each":
        return tuple(rows)
    from mlflow_ft.engine.judging import judge

    examples = list(data.eval.examples)
    answered = list(itertools.islice(filter(judge.answerable, examples), config.evaluation.max_rows))
    judged = next((some for some in (examples, answered) if len(some) == len(rows)), None)
    if judged is None:  # an evaluator's own choice of rows
        return tuple(rows)
    groups: list[list[float | None]] = []
    for number, (example, value) in enumerate(zip(judged, rows, strict=True)):
        before = judged[number - 1].messages if number else ()
        if not before or example.messages[: len(before)] != before:
            groups.append([])
        groups[-1].append(value)
    known = [[value for value in group if value is not None] for group in groups]
    return tuple(sum(values) / len(values) if values else None for values in known)


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity: such a row has no score."""
    return value if value is not None and math.isfinite(value) else None


def table(scores: Scores) -> list[dict[str, Any]]:
    """A row for each held-out prompt: what was asked and expected, what either model answered."""
    return [
        {
            "prompt": base.asked,
            "expected": base.expected,
            "base": base.text,
            "tuned": tuned.text,
            "base_exact": base.text.strip() == base.expected.strip(),
            "tuned_exact": tuned.text.strip() == tuned.expected.strip(),
        }
        for base, tuned in scores.answers
    ]
