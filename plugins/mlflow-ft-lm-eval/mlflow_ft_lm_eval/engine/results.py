"""From what the harness returns to scores, tables and files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_ft import Run, Score
from mlflow_ft_lm_eval.options import LmEvalOptions

FOLDER = "eval/lm_eval"
UNNAMED = "none"
"""The filter of tasks that have none."""
CLOSE = 1e-6


def asked(options: LmEvalOptions) -> str:
    """What decides how questions are asked, besides the tasks."""
    return json.dumps(
        [
            options.apply_chat_template,
            options.fewshot_as_multiturn and options.apply_chat_template,
            options.system_instruction,
            options.max_new_tokens,
        ]
    )


def scores(found: Mapping[str, Any], asked: str) -> list[Score]:
    """A score for every metric and filter of every task and group, with a value for each sample of a mean."""
    return [
        Score(
            name=name_of(task, metric, kind),
            value=value,
            rows=rows_of(found, task, metric, kind, value),
            lower_is_better=direction(found, task, metric),
            digest=digest(found, task, asked),
        )
        for task, metric, kind, value in measured(found)
    ]


def measured(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Task or group, metric, filter and value, without standard errors."""
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                yield task, metric, kind, float(value)


def name_of(task: str, metric: str, kind: str) -> str:
    """The score's name: `lm_eval/arc_easy/acc`, and `lm_eval/gsm8k/exact_match/strict-match` for a named filter."""
    parts = [task, metric, *([] if kind == UNNAMED else [kind])]
    return "/".join(["lm_eval", *(re.sub(r"[^\w.-]", "_", part, flags=re.ASCII) for part in parts)])


def direction(found: Mapping[str, Any], task: str, metric: str) -> bool | None:
    """Whether lower is better, as the task says; None where it does not."""
    higher = found["higher_is_better"].get(task, {}).get(metric)
    return None if higher is None else not higher


def rows_of(found: Mapping[str, Any], task: str, metric: str, kind: str, value: float) -> tuple[float | None, ...]:
    """The value of every sample, in the order of the task's questions; empty if the score is not their mean.

    NaN is None: such an answer could not be scored.
    """
    values = [sample.get(metric) for sample in samples_of(found, task, kind)]
    if not values or not all(value is None or isinstance(value, bool | int | float) for value in values):
        return ()
    rows = tuple(None if row is None or math.isnan(row) else float(row) for row in values)
    mean = Score.mean("", rows).value
    return rows if math.isclose(mean, value, rel_tol=CLOSE, abs_tol=CLOSE) else ()


def samples_of(found: Mapping[str, Any], task: str, kind: str) -> list[Mapping[str, Any]]:
    """The samples of a task with one filter, in the order of its questions; empty for a group."""
    samples = [sample for sample in found["samples"].get(task, ()) if sample["filter"] == kind]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def digest(found: Mapping[str, Any], task: str, asked: str) -> str:
    """32 hex digits over the questions, the right answers, the task's version, the examples and how it is asked."""
    tasks = sorted(members(found, task))
    content = [
        [
            name,
            found["versions"].get(name),
            found["n-shot"].get(name),
            sorted((sample["doc_hash"], sample["target_hash"]) for sample in found["samples"].get(name, ())),
        ]
        for name in tasks
    ]
    return hashlib.sha256(json.dumps([asked, content], default=str).encode()).hexdigest()[:32]


def members(found: Mapping[str, Any], task: str) -> Iterator[str]:
    """The tasks of a group, or the task itself."""
    inside = found.get("group_subtasks", {}).get(task)
    if not inside:
        yield task
    for name in inside or ():
        yield from members(found, name)


# --- in the run


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table of results."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    samples: int
    examples: int | None
    version: Any
    higher_is_better: bool | None


def log(run: Run, model: str, found: Mapping[str, Any], scores: Sequence[Score], *, samples: bool) -> None:
    """Log the table of results, the settings of every task, and every sample.

    `eval/lm_eval/MODEL/results.json`, `tasks.json`, `samples_TASK.json`.
    """
    table = [vars(row) for row in rows(found, scores)]
    run.table(table, f"{FOLDER}/{model}/results.json")
    run.artifact_text(json.dumps(found["configs"], indent=2, default=str), f"{FOLDER}/{model}/tasks.json")
    for task, kept in found["samples"].items() if samples else ():
        if kept:
            run.table([shown(sample) for sample in kept], f"{FOLDER}/{model}/samples_{task}.json")


def rows(found: Mapping[str, Any], scores: Sequence[Score]) -> Iterator[Row]:
    """The table of results."""
    for (task, metric, kind, value), score in zip(measured(found), scores, strict=True):
        yield Row(
            task=task,
            metric=metric,
            filter=kind,
            value=value,
            stderr=stderr(score),
            samples=len(samples_of(found, task, kind)),
            examples=found["n-shot"].get(task),
            version=found["versions"].get(task),
            higher_is_better=None if score.lower_is_better is None else not score.lower_is_better,
        )


def stderr(score: Score) -> float | None:
    """The standard error of a mean."""
    known = [row for row in score.rows if row is not None]
    if len(known) < 2:
        return None
    spread = sum((row - score.value) ** 2 for row in known) / (len(known) - 1)
    return math.sqrt(spread / len(known))


def shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as a row: the question as it was asked, the right answer, the model's, and the values."""
    first = sample["arguments"][0] if sample["arguments"] else ()
    answers = sample["filtered_resps"]
    return {
        "doc_id": sample["doc_id"],
        "asked": str(first[0]) if first else "",
        "choices": _text([str(choice[1]) for choice in sample["arguments"]]) if len(sample["arguments"]) > 1 else "",
        "target": _text(sample["target"]),
        "answer": _text(answers[0] if len(answers) == 1 else answers),
        "filter": sample["filter"],
        **{metric: _plain(sample.get(metric)) for metric in sample["metrics"]},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _plain(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, bool | int | float) else _text(value)
