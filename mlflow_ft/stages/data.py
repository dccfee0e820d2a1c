"""Stage 1: rows -> conversations -> tokens with a proved mask -> split -> fingerprint, and the data checks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlflow_ft import hashes
from mlflow_ft.data import lineage, mask_page, pages
from mlflow_ft.data.sources import Source
from mlflow_ft.errors import DataError, Problem, RefusedError
from mlflow_ft.job import Job
from mlflow_ft.preparing import dataset, fix, guards, show
from mlflow_ft.preparing.checking import ADVISED, BY_TEXT
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.preparing.fix import Cleaned
from mlflow_ft.preparing.show import ShownRow
from mlflow_ft.progress import Progress
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Kind
from mlflow_ft.stages import unchanged
from mlflow_ft.values import BaseModel, CheckResult, Data

CLOCK_TAG = "mlflow_ft.template_clock"
"""Tag of a run whose chat template may ask for the time: the time that it gets, in local time."""
SHOWN = 2
"""Rows that are shown in the terminal, as the trainer sees them."""
KIND_WORDS: Mapping[Kind, str] = {
    "conversation": "conversations",
    "text": "plain text",
    "preference": "preferences (a chosen and a rejected answer)",
    "unpaired": "answers with a true/false label",
    "prompt": "prompts without an answer",
}


def prepare(job: Job, base: BaseModel) -> Data:
    """Read, recognise, convert, check, tokenise and split the rows, and prove the mask of each one.

    Raises:
        DataError: the rows cannot be read, recognised, converted, or their mask cannot be proved.
        ModelError: the base model has no tokenizer or no chat template.
        RefusedError: a check found what `data.fail_on` refuses.
    """
    checked = check_rows(job, base, accept=partial(fits, job.config.method, job.registry))
    refuse(checked, job.config.data.fail_on)
    return guarded(job, checked.data)


def guarded(job: Job, data: Data) -> Data:
    """The data with the guard sets, which are also logged as inputs of the run.

    Raises:
        DataError: a guard set cannot be used.
    """
    guard_sets = guards.prepare(job.config, data, plugins=job.plugins, registry=job.registry, progress=job.progress)
    for name, guard in guard_sets.items():
        job.run.log_inputs([guard.eval], tags={"mlflow_ft.guard": name})
        job.progress.say(f"guard {name}: {guard.eval.counts['rows']:,} rows ({guard.format})")
    return replace(data, guards=guard_sets)


def check_rows(
    job: Job,
    base: BaseModel,
    *,
    strict: bool = True,
    accept: Callable[[DataFormat], None] = lambda record: None,
) -> CheckedData:
    """Prepare, check and log the rows, without refusing what the checks found.

    `strict` refuses bad rows as `data.on_bad_row` says; `accept` is called with the format first, and may raise.
    """
    from mlflow_ft.engine.tokens import tokenizers

    job.run.begin("data")
    tokenizer = tokenizers.load(job.config, base)
    checked = dataset.prepare(
        job.config,
        tokenizer,
        plugins=job.plugins,
        registry=job.registry,
        progress=job.progress,
        strict=strict,
        accept=accept,
    )
    rows = show.first_rows(checked, job.config)
    report(checked, job.progress)
    for row in rows[:SHOWN]:
        learned = f"{sum(row.supervised)} of {len(row.tokens)} tokens are learned"
        title = f"{row.place}: {'a prompt' if checked.data.kind == 'prompt' else learned}"
        job.progress.marked(title, show.runs(row.tokens, row.supervised))
    log(job, checked, rows)
    return checked


def fits(method: str, registry: Registry, record: DataFormat) -> None:
    """Raise DataError if the method cannot learn from rows of this kind."""
    wanted = registry.trainers[method].kinds
    if record.kind in wanted:
        return
    fitting = [trainer.name for trainer in registry.trainers if record.kind in trainer.kinds]
    raise DataError(
        f"{method} learns from {' or '.join(KIND_WORDS[kind] for kind in wanted)}; these rows (format {record.name}) "
        f"are {KIND_WORDS[record.kind]}",
        hint=f"methods for these rows: {', '.join(fitting) or 'none is installed'}; or read them in another format "
        "(--data.format)",
    )


def refuse(checked: CheckedData, fail_on: str) -> None:
    """Raise RefusedError if a check found something as severe as `data.fail_on`."""
    if fail_on == "never":
        return
    worst = checked.report.worst("error" if fail_on == "error" else "warn")
    if worst:
        raise RefusedError(
            f"the data is not good enough to train on: {len(worst)} check{'s' * (len(worst) != 1)} failed at "
            f"data.fail_on {fail_on}",
            problems=[Problem(place=check.name, message=summary(check), hint=check.remedy) for check in worst],
            hint="see the rows with `mlflow-ft data check`, fix them with `mlflow-ft prepare --fix`, or train anyway "
            "with --data.fail_on never",
        )


def summary(check: CheckResult) -> str:
    """What a check found, in a line."""
    return f"{check.count:,} {'row' if check.count == 1 else 'rows'} ({check.share:.1%}): {check.summary}"


def report(checked: CheckedData, progress: Progress) -> None:
    """Print how much there is to learn from, and warnings about the data."""
    data = checked.data
    train, held = data.train.counts, data.eval.counts
    learned = f"{train['supervised_tokens']:,} of {train['tokens']:,} tokens are learned"
    if data.kind == "prompt":
        learned = f"{train['tokens']:,} tokens; the answers are sampled"
    progress.say(f"data: {train['rows']:,} training rows and {held['rows']:,} held out ({data.format}), {learned}")
    if checked.eval.by_text:
        progress.say(f"split: {BY_TEXT}")
    ways = ", ".join(f"{way} {count:,}" for way, count in sorted(checked.train.stored.ways.items()))
    if data.kind in ("conversation", "preference", "unpaired"):
        progress.say(f"mask: proved for every row, derived by {ways}")
    if (stored := checked.train.stored).count > stored.read:
        progress.say(
            f"turns: {stored.read:,} rows became {stored.count:,}, one for each learned turn; "
            f"{show.cost(stored):.1f} times the tokens"
        )
    if data.clock:
        dates = ", ".join(data.clock.values())
        progress.say(f"template: it writes the current date; all rows of this run get {dates} (or --data.date DAY)")
    for name, (taken, available) in checked.taken.items():
        progress.say(f"mixture: {taken:,} of {available:,} rows of {name}")
    if checked.taught_tools:
        progress.say(
            "template: the model's template has no tool calls and was extended: they are written as <tool_call> JSON; "
            "the extended template is saved with the model"
        )
    for side in ("train", "eval"):
        _report_cut(checked, side, progress)
    _report_found(checked, progress)


def _report_found(checked: CheckedData, progress: Progress) -> None:
    for check in checked.report.worst("warn"):
        if check.name == "over-max-length":
            continue  # reported above, for each side
        progress.warn(f"{check.name}: {summary(check)}" + (f"; {check.remedy}" if check.name in ADVISED else ""))


def _report_cut(checked: CheckedData, side: str, progress: Progress) -> None:
    split = checked.data.train if side == "train" else checked.data.eval
    if split.counts["truncated"]:
        share = split.counts["truncated"] / split.counts["rows"]
        progress.warn(
            f"{side}: {split.counts['truncated']:,} rows ({share:.1%}) were cut to data.max_length and lose their end "
            f"of turn; {show.remedy_for_length(checked, side)}"
        )


def log(job: Job, checked: CheckedData, shown: Sequence[ShownRow]) -> None:
    """Log data sets, counts, masks, the report of the checks, the rows left out, and the hashes of all rows."""
    from mlflow_ft.engine.tokens import clock

    data = checked.data
    unchanged.check(
        job,
        "mlflow_ft.data_fingerprint",
        data.fingerprint,
        what="the rows, or how they are prepared,",
        error=DataError,
        hint="restore the files, the chat template, mlflow-ft and its plugins",
    )
    job.run.log_inputs([data.train, data.eval], tags={"mlflow_ft.data_fingerprint": data.fingerprint})
    job.run.set_tags(
        {
            "mlflow_ft.data_digest": data.train.digest,
            "mlflow_ft.data_fingerprint": data.fingerprint,
            "mlflow_ft.data_format": data.format,
            "mlflow.mlflow_ft.data_mask": ", ".join(sorted(checked.train.stored.ways)),
        }
    )
    if clock.told_to(data.tokenizer, clock.current()):
        job.run.set_tags({CLOCK_TAG: clock.current().isoformat()})
    counts = {f"{side.name}/{name}": value for side in (data.train, data.eval) for name, value in side.counts.items()}
    job.run.params({f"data/{name}": value for name, value in (counts | checked.report.numbers()).items()})
    job.run.metrics({f"data/{name}": value for name, value in checked.report.metrics().items()})
    for name, text in artifacts(checked, shown).items():
        job.run.artifact_text(text, f"data/{name}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: (side.stored.table, side.stored.files, side.indices) for name, side in checked.sides.items()}
        job.run.artifact(hashes.write_rows(sides, Path(folder)), "data")


def artifacts(checked: CheckedData, shown: Sequence[ShownRow]) -> dict[str, str]:
    """The texts and pages about the data that the run keeps, by name."""
    quality = checked.report.as_dict()
    names = [Path(source.asked).name or source.asked for source in checked.train.stored.sources]
    texts = {
        "mask.txt": show.as_text(shown),
        "mask.html": mask_page.mask_page(
            [row.as_dict() for row in shown], title=f"Learned tokens in {checked.data.format} rows"
        ),
        "quality.json": json.dumps(quality, indent=2, ensure_ascii=False),
        "quality.html": pages.quality_page(quality, title=f"Data quality of {', '.join(names)}"),
        "lineage.json": json.dumps(lineage.described(checked.data, _sources(checked)), indent=2),
    }
    if checked.left_out:
        lines = [{"file": row.file, "line": row.line, "reason": row.reason} for row in checked.left_out]
        texts["left_out.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return texts


def _sources(checked: CheckedData) -> dict[str, tuple[Sequence[Source], Mapping[str, Any]]]:
    return {name: (side.stored.sources, side.stored.parts) for name, side in checked.sides.items()}


def clean(job: Job, checked: CheckedData, folder: Path | None = None) -> Cleaned:
    """Write the cleaned rows and the list of removed rows into `folder`, else the run's folder, and log both."""
    cleaned = fix.write(checked, folder or job.folder / "data")
    for file in (*cleaned.files, cleaned.removed):
        job.run.artifact(file, "data")
    job.run.metrics({"data/fixed/kept": float(cleaned.kept_count), "data/fixed/removed": float(cleaned.removed_count)})
    return cleaned
