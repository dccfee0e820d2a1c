"""The run in MLflow's UI: a name that says what it is, and a description that says how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from mlflow_ft.config.gates import Gates
from mlflow_ft.config.schema import Config
from mlflow_ft.forms import changes
from mlflow_ft.forms.card.markdown import block, bullets, code, counted, number, plain, spaced, table
from mlflow_ft.job import Job
from mlflow_ft.values import Data, Package, Score, Scores, Trained, Version
from mlflow_ft.values.report import percent

NAME = "mlflow.runName"
LONGEST_NAME = 100
SHOWN = 20
"""Scores in a description, which MLflow cuts after 8,000 characters."""


def renaming(current: str | None, config: Config, *, what: str = "") -> dict[str, str]:
    """The tag that names a run, if MLflow made its name up."""
    from mlflow_ft.tracking import is_generated

    return {NAME: name(config, what=what)} if not config.run.name and is_generated(current) else {}


def name(config: Config, *, what: str = "") -> str:
    """The run in a few words: `qlora smollm2-135m train.jsonl`; `what` is a chain in place of the method."""
    words = f"{what or config.method} {_last(config.model.name)} {_rows(config)}"
    return words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME - 4]} ..."


def _rows(config: Config) -> str:
    asked = config.data.path
    sources = [asked] if isinstance(asked, str) else list(asked)
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return (_last(sources[0]) if sources else "") + more


def _last(source: str) -> str:
    """The end of a path or of an id."""
    return Path(source.rstrip("/\\")).name or source


def begun(config: Config) -> str:
    """The description of a run that has not ended."""
    asked = f"{code(config.model.name)} with the method {code(config.method)} on {code(_rows(config))}"
    return f"Fine-tunes {asked}. The result will be here when the run has ended."


def finished(
    job: Job, data: Data, trained: Trained, scores: Scores, package: Package, versions: Sequence[Version]
) -> str:
    """The description of a run that has ended: whether it helped, all scores, what was registered, what comes next."""
    found = changes.of(scores.base, scores.tuned, Gates().knowing(job.registry.lower_is_better))
    better = changes.verdict(job.registry.trainers[job.config.method].scores, scores.base, scores.tuned, found)
    verdict = "" if better is None or (scores.worse and scores.worse.sure) else _verdict(better)
    held = counted(data.eval.counts["rows"], "held-out row")
    parts = [
        verdict,
        _table(scores, found) if scores.tuned else "",
        f"On {held}; changes with 95 % intervals, row by row." if scores.tuned else "",
        bullets([*_asked(job.config, data), *_training(trained), *_proved(package), *_registered(versions)]),
        block("", _next(versions)) if versions else "",
    ]
    return spaced("\n\n".join(filter(None, parts)))


def columns(tuned: Sequence[Score], verdict: changes.Verdict | None) -> list[str]:
    """The metrics to show in a list of runs: the score that the method is for, before and after, then all others."""
    aim = verdict.score if verdict else ""
    own = [f"eval/base/{aim}", f"eval/tuned/{aim}"] if aim else []
    return [*own, *(f"eval/tuned/{score.name}" for score in tuned if score.name != aim)]


def _verdict(found: changes.Verdict) -> str:
    return f"**{found.words}**: {code(found.score)} {number(found.base)} → {number(found.tuned)}."


def _table(scores: Scores, found: Mapping[str, changes.Change]) -> str:
    base = {score.name: score.value for score in scores.base}
    rows = [
        [code(score.name), number(base.get(score.name)), number(score.value), str(found[score.name])]
        for score in scores.tuned[:SHOWN]
    ]
    left = len(scores.tuned) - len(rows)
    more = f"\n\nand {counted(left, 'score')} more, in {code('report.html')}" if left else ""
    return table(["score", "base", "tuned", "change"], rows, numbers=(1, 2)) + more


def _asked(config: Config, data: Data) -> list[str]:
    learned, tokens = (data.train.counts[name] for name in ("supervised_tokens", "tokens"))
    rows = f"{counted(data.train.counts['rows'], 'row')}, {learned:,} of {tokens:,} tokens learned"
    lines = [
        f"asked: {code(config.method)} of {code(config.model.name)} on {code(_rows(config))} ({rows})",
    ]
    if data.report is not None:
        found = [
            f"{plain(check.name)} in {counted(check.count, 'row')} ({percent(check.share)})"
            for check in data.report.worst("warn")
        ]
        lines.append(f"data: {'; '.join(found) or 'the checks found nothing to warn of'} ({code('data/quality.html')})")
    return lines


def _training(trained: Trained) -> list[str]:
    """Why it ended early, which weights were kept, and what was found."""
    return [
        *([f"training: ended early, {plain(trained.stopped)}"] if trained.stopped else []),
        *([f"weights: those of {plain(str(trained.chosen))}"] if trained.chosen else []),
        *(f"found: {plain(finding)}" for finding in trained.findings),
    ]


def _proved(package: Package) -> list[str]:
    """How far each form is from the model in memory."""
    kept = [(form.name, form.parity) for form in package.models] + [(form.name, form.parity) for form in package.files]
    return [
        f"{code(form)} is the trained model, compared after it was loaded again: mean KL divergence "
        f"{number(parity.get('kl_mean'))}"
        for form, parity in kept
    ]


def _registered(versions: Sequence[Version]) -> list[str]:
    lines = []
    for version in versions:
        link = f"#/models/{quote(version.name)}/versions/{version.version}"
        alias = f" {code('@' + version.alias)}" if version.alias else ", without an alias"
        lines.append(f"registered: [{plain(version.name)} version {version.version}]({link}){alias}")
    return lines or ["nothing was registered"]


def _next(versions: Sequence[Version]) -> list[str]:
    """Commands that follow, for the first version."""
    first = versions[0]
    which = f"{first.name}/{first.version}"
    promote = [f"mlflow-ft promote {first.name} --version {first.version}"] if first.alias else []
    return [f"mlflow-ft chat {which}", f"mlflow-ft serve {which}", *promote]


def replaced(note: str, old: str, new: str) -> str:
    """A description with our part replaced, or put first if it is not there; what users wrote stays."""
    return note.replace(old, new, 1) if old in note else "\n\n".join(filter(None, [new, note]))
