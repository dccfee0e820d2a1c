"""Whether a run was reproduced: curves, scores and weights compared, reported, and kept with the new run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import RefusedError
from mlflow_ft.job import Job
from mlflow_ft.operations.changes import Change
from mlflow_ft.operations.reproducing import comparison, weights
from mlflow_ft.operations.reproducing.comparison import Compared, Rule
from mlflow_ft.operations.reproducing.original import COMPARED, Original
from mlflow_ft.operations.reproducing.weights import ComparedWeights

if TYPE_CHECKING:
    from mlflow_ft.progress import Progress
    from mlflow_ft.values import Trained

FILE = "reproduction.json"
"""The artifact of the new run with the whole comparison."""
TAG = "mlflow_ft.reproduction"
"""Tag of the new run: the result in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A reproduction, compared with its original."""

    run_id: str
    reproduces: str
    """The id of the original run."""
    tracking_uri: str
    url: str | None
    folder: str
    rule: Rule
    metrics: Sequence[Compared]
    weights: ComparedWeights
    environment: Sequence[Change]
    """What differs between the two runs, other than the data and the configuration, which are the same."""

    @property
    def first(self) -> Compared | None:
        """The first metric that differs, by the rule."""
        return comparison.first(self.metrics)

    @property
    def same(self) -> bool:
        """Whether the original was reproduced. Weights decide only where everything must be the same bit for bit."""
        return self.first is None and not (self.rule.exact and self.weights.differing)

    @property
    def identical(self) -> bool:
        """Whether every number and every weight is the same bit for bit, whatever the rule asks."""
        return all(metric.identical for metric in self.metrics) and self.weights.identical

    @property
    def sentence(self) -> str:
        """The result."""
        if self.identical:
            return "equal bit for bit: every curve, score and weight"
        if self.first:
            return _difference(self.first)
        if not self.same:
            return f"the curves and scores are equal, but not the weights: {', '.join(self.weights.differing)}"
        if self.rule.exact:
            return "equal bit for bit: every curve and score; the original's weights were not recorded"
        return f"equal within the tolerance: {self.rule} (relative; absolute below 1)"


class NotReproducedError(RefusedError):
    """The reproduction differs from its original."""

    def __init__(self, reproduction: Reproduction) -> None:
        problems = [change.problem for change in reproduction.environment]
        super().__init__(
            f"run {reproduction.reproduces} was not reproduced: {reproduction.sentence}",
            problems=problems,
            hint=_explanation(reproduction),
        )
        self.reproduction = reproduction


def _explanation(reproduction: Reproduction) -> str:
    first = reproduction.first
    if not reproduction.environment:
        return "nothing differs in code, plugins, versions or machine: the training itself is not deterministic"
    differs = "this differs in the environment; with all of it as it was, the results are equal bit for bit on a CPU"
    if first and first.grown and not reproduction.rule.exact:
        return f"{differs}. The difference began as rounding ({first.began:.1g}) and grew, as at high learning rates"
    return differs


def _difference(first: Compared) -> str:
    values = f"{_number(first.then)} in the original, {_number(first.now)} now"
    if first.curve:
        return f"{first.name} differs first, at step {first.step}: {values}"
    return f"every curve is equal, but not {first.name}: {values}"


def _number(value: float | None) -> str:
    return "no value" if value is None else repr(value)


def rule(original: Original, environment: Sequence[Change], *, tolerance: float | None) -> Rule:
    """How the two are compared: bit for bit on a CPU if nothing differs in the environment, unless the user says."""
    import torch

    from mlflow_ft.engine import hardware

    lower = hardware.compute_dtype(original.config.model.dtype) is not torch.float32
    usual = comparison.default_tolerance(original.config, lower=lower)
    if tolerance is not None:
        return Rule(exact=tolerance == 0, tolerance=tolerance)
    alike = not environment and not original.accepted
    return Rule(exact=alike and hardware.device().type == "cpu", tolerance=usual)


def announce(original: Original, environment: Sequence[Change], rule: Rule, progress: Progress) -> None:
    """Say before the training what has changed, and how the results will be compared."""
    for change in environment:
        progress.warn(f"changed since the original: {change}")
    if original.accepted:
        progress.warn(f"the original was resumed although something had changed: {original.accepted}")
    if any(change.kind == "code" for change in environment) and original.commit:
        progress.say(f"the original was started at the git commit {original.commit}")
    progress.say(f"reproducing run {original.run_id}; to be compared: {rule}")


def judge(job: Job, original: Original, trained: Trained, environment: Sequence[Change], rule: Rule) -> Reproduction:
    """Compare the new run, which is trained and scored, with its original; report the result and keep it.

    Raises:
        NotReproducedError: they differ.
    """
    from mlflow_ft.tracking import JOURNAL_FILE, curves

    job.run.begin("compare")
    measured = curves.journalled(job.folder / JOURNAL_FILE, prefixes=COMPARED)
    reproduction = Reproduction(
        run_id=job.run.run_id,
        reproduces=original.run_id,
        tracking_uri=job.run.tracking_uri,
        url=job.run.url,
        folder=str(job.folder),
        rule=rule,
        metrics=comparison.compare(original.curves, measured, rule),
        weights=weights.compare(original, trained),
        environment=environment,
    )
    report(reproduction, job.progress)
    text = json.dumps(as_dict(reproduction), indent=2)
    (job.folder / FILE).write_text(text + "\n", encoding="utf-8")
    job.run.set_tags({TAG: reproduction.sentence})
    job.run.artifact_text(text, FILE)
    if not reproduction.same:
        raise NotReproducedError(reproduction)
    return reproduction


def as_dict(reproduction: Reproduction) -> dict[str, Any]:
    """The reproduction as JSON, which has neither NaN nor infinity."""
    first = reproduction.first
    return {
        "run_id": reproduction.run_id,
        "reproduces": reproduction.reproduces,
        "same": reproduction.same,
        "identical": reproduction.identical,
        "result": reproduction.sentence,
        "rule": asdict(reproduction.rule),
        "first": _plain(asdict(first)) if first else None,
        "environment": [asdict(change) for change in reproduction.environment],
        "weights": _plain(asdict(reproduction.weights)),
        "metrics": [_plain(asdict(metric)) for metric in reproduction.metrics],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def report(reproduction: Reproduction, progress: Progress) -> None:
    """Print a line for each curve and score, and one for the weights."""
    columns = ["metric", "points", "compared", "largest difference", "first at step"]
    curves_first = sorted(reproduction.metrics, key=lambda metric: (not metric.curve, metric.name))
    rows = [
        [
            metric.name,
            str(metric.points),
            _result(metric),
            f"{metric.largest:.2g}" if metric.largest else "",
            _at(metric),
        ]
        for metric in curves_first
    ]
    files = reproduction.weights
    largest = f"{files.largest:.2g}" if files.largest else ""
    rows.append(["weights", f"{files.count} file{'s' * (files.count != 1)}", files.result, largest, ""])
    progress.table(f"Run {reproduction.reproduces} and its reproduction", columns, rows, text=(0, 2))
    if any(not metric.decides and not metric.identical for metric in reproduction.metrics):
        progress.say("what is in parentheses does not decide: within a tolerance, only losses do")
    progress.say(reproduction.sentence)
    facts = {"run": reproduction.run_id, "tracking": reproduction.url or reproduction.tracking_uri}
    progress.facts(facts | {"files": reproduction.folder})


def _result(metric: Compared) -> str:
    if metric.identical:
        return "identical"
    result = "within tolerance" if metric.same else "differs"
    return result if metric.decides else f"({result})"


def _at(metric: Compared) -> str:
    return "" if metric.step is None or not metric.curve else str(metric.step)
