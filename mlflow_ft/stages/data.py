"""Stage 1: rows -> conversations -> tokens with a proved mask -> split -> fingerprint, and what the checks found."""

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
from mlflow_ft.preparing.checking import UNWRITTEN
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.preparing.fix import Cleaned
from mlflow_ft.preparing.show import ShownRow
from mlflow_ft.progress import Progress
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Kind
from mlflow_ft.values import BaseModel, CheckResult, Data

CLOCK_TAG = "mlflow_ft.template_clock"
"""Of a run whose chat template may ask the time: the moment that it is given, local time."""
TOLD = 2
"""Rows that are shown in the terminal, as the trainer sees them."""
KIND_WORDS: Mapping[Kind, str] = {
    "conversation": "conversations",
    "text": "plain text",
    "preference": "preferences (a chosen and a rejected answer)",
    "unpaired": "answers with a label that is true or false",
    "prompt": "prompts without an answer",
}


def prepare(job: Job, base: BaseModel) -> Data:
    """Read, recognise, convert, check, tokenise and split the rows, and prove the mask of every one of them.

    Raises:
        DataError: the rows cannot be read, recognised, converted, or their mask cannot be proved.
        ModelError: the base model has no tokenizer or no chat template.
        RefusedError: a check found what `data.fail_on` does not let pass.
    """
    found = look(job, base, accept=partial(fits, job.config.method, job.registry))
    refuse(found, job.config.data.fail_on)
    return guarded(job, found.data)


def guarded(job: Job, data: Data) -> Data:
    """The data with the guard sets, which are logged as inputs of the run, too.

    Raises:
        DataError: one of them cannot be used.
    """
    found = guards.prepare(job.config, data, plugins=job.plugins, registry=job.registry, progress=job.progress)
    for name, one in found.items():
        job.run.log_inputs([one.eval], tags={"mlflow_ft.guard": name})
        job.progress.say(f"guard {name}: {one.eval.counts['rows']:,} rows ({one.format})")
    return replace(data, guards=found)


def look(
    job: Job,
    base: BaseModel,
    *,
    strict: bool = True,
    accept: Callable[[DataFormat], None] = lambda record: None,
) -> CheckedData:
    """Prepare and check the rows, and log all that is known of them; what the checks found is not refused yet.

    `strict` refuses bad rows as `data.on_bad_row` says; `accept` sees the format first, and may raise.
    """
    from mlflow_ft.engine.tokens import tokenizers

    job.run.begin("data")
    tokenizer = tokenizers.load(job.config, base)
    found = dataset.prepare(
        job.config,
        tokenizer,
        plugins=job.plugins,
        registry=job.registry,
        progress=job.progress,
        strict=strict,
        accept=accept,
    )
    shown = show.first_rows(found, job.config)
    tell(found, job.progress)
    for one in shown[:TOLD]:
        learned = f"{sum(one.supervised)} of {len(one.tokens)} tokens are learned"
        title = f"{one.place}: {'a prompt' if found.data.kind == 'prompt' else learned}"
        job.progress.marked(title, show.runs(one.tokens, one.supervised))
    log(job, found, shown)
    return found


def fits(method: str, registry: Registry, record: DataFormat) -> None:
    """Raise DataError where the rows are good, but not for this method."""
    wanted = registry.trainers[method].kinds
    if record.kind in wanted:
        return
    fitting = [trainer.name for trainer in registry.trainers if record.kind in trainer.kinds]
    raise DataError(
        f"{method} learns from {' or '.join(KIND_WORDS[kind] for kind in wanted)}; these rows (format {record.name}) "
        f"are {KIND_WORDS[record.kind]}",
        hint=f"methods that take them: {', '.join(fitting) or 'none is installed'}; "
        "or name the format to read them as with --data.format",
    )


def refuse(found: CheckedData, fail_on: str) -> None:
    """Raise RefusedError where a check found something as severe as `data.fail_on`."""
    if fail_on == "never":
        return
    worst = found.report.worst("error" if fail_on == "error" else "warn")
    if worst:
        raise RefusedError(
            f"the data is not good enough to train on: {len(worst)} check{'s' * (len(worst) != 1)} found what "
            f"data.fail_on {fail_on} does not let pass",
            problems=[Problem(place=one.name, message=told(one), hint=one.remedy) for one in worst],
            hint="see them with `mlflow-ft data check`, mend them with `mlflow-ft prepare --fix`, or go on all the "
            "same with --data.fail_on never",
        )


def told(found: CheckResult) -> str:
    """What a check found, in a line."""
    return f"{found.count:,} {'row' if found.count == 1 else 'rows'} ({found.share:.1%}): {found.summary}"


def tell(found: CheckedData, progress: Progress) -> None:
    """What there is to learn from, and whatever a person should know before it is trained on."""
    data = found.data
    train, held = data.train.counts, data.eval.counts
    learned = f"{train['supervised_tokens']:,} of {train['tokens']:,} tokens are learned"
    if data.kind == "prompt":
        learned = f"{train['tokens']:,} tokens; the answers are sampled"
    progress.say(f"data: {train['rows']:,} rows to train on and {held['rows']:,} held out ({data.format}), {learned}")
    ways = ", ".join(f"{way} {count:,}" for way, count in sorted(found.train.stored.ways.items()))
    if data.kind in ("conversation", "preference", "unpaired"):
        progress.say(f"mask: proved in every row; where the assistant speaks was found by {ways}")
    if (stored := found.train.stored).count > stored.read:
        progress.say(
            f"turns: {stored.read:,} rows became {stored.count:,}, one for each turn that is learned; "
            f"{show.cost(stored):.1f} times the tokens"
        )
    if data.clock:
        dates = ", ".join(data.clock.values())
        progress.say(f"template: it asks the date; every row of this run is written as of {dates} (or --data.date DAY)")
    for name, (taken, there) in found.taken.items():
        progress.say(f"mixture: {taken:,} of {there:,} rows of {name}")
    if found.taught_tools:
        progress.say(
            "template: the model's own knows no tools; it was extended: calls are written as <tool_call> JSON, and the "
            "extended template is saved with the model"
        )
    for side in ("train", "eval"):
        _tell_cut(found, side, progress)
    for one in found.report.worst("warn"):
        if one.name == "over-max-length":
            continue  # told above, side by side
        progress.warn(f"{one.name}: {told(one)}" + (f"; {one.remedy}" if one.name == UNWRITTEN else ""))


def _tell_cut(found: CheckedData, side: str, progress: Progress) -> None:
    split = found.data.train if side == "train" else found.data.eval
    if split.counts["truncated"]:
        share = split.counts["truncated"] / split.counts["rows"]
        progress.warn(
            f"{side}: {split.counts['truncated']:,} rows ({share:.1%}) were cut to data.max_length and lose their end "
            f"of turn; {show.remedy_for_length(found, side)}"
        )


def log(job: Job, found: CheckedData, shown: Sequence[ShownRow]) -> None:
    """Log data sets, counts, the masks, the report of the checks, what was left out, and which rows there are."""
    from mlflow_ft.engine.tokens import clock

    data = found.data
    job.run.log_inputs([data.train, data.eval], tags={"mlflow_ft.data_fingerprint": data.fingerprint})
    job.run.set_tags(
        {
            "mlflow_ft.data_digest": data.train.digest,
            "mlflow_ft.data_fingerprint": data.fingerprint,
            "mlflow_ft.data_format": data.format,
            "mlflow_ft.data_mask": ", ".join(sorted(found.train.stored.ways)),
        }
    )
    if clock.told_to(data.tokenizer, clock.current()):
        job.run.set_tags({CLOCK_TAG: clock.current().isoformat()})
    counts = {f"{side.name}/{name}": value for side in (data.train, data.eval) for name, value in side.counts.items()}
    metrics = {f"data/{name}": float(value) for name, value in (counts | found.report.metrics()).items()}
    job.run.metrics(metrics)
    for name, text in artifacts(found, shown).items():
        job.run.artifact_text(text, f"data/{name}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: (one.stored.table, one.stored.files, one.indices) for name, one in found.sides.items()}
        job.run.artifact(hashes.write_rows(sides, Path(folder)), "data")


def artifacts(found: CheckedData, shown: Sequence[ShownRow]) -> dict[str, str]:
    """The texts and pages that are kept of the data, by name."""
    report = found.report.as_dict()
    texts = {
        "mask.txt": show.as_text(shown),
        "mask.html": mask_page.mask_page(
            [one.as_dict() for one in shown], title=f"What is learned of {found.data.format}"
        ),
        "quality.json": json.dumps(report, indent=2, ensure_ascii=False),
        "quality.html": pages.quality_page(
            report, title=", ".join(source.asked for source in found.train.stored.sources)
        ),
        "lineage.json": json.dumps(lineage.described(found.data, _sources(found)), indent=2),
    }
    if found.left_out:
        lines = [{"file": one.file, "line": one.line, "reason": one.reason} for one in found.left_out]
        texts["left_out.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return texts


def _sources(found: CheckedData) -> dict[str, tuple[Sequence[Source], Mapping[str, Any]]]:
    return {name: (one.stored.sources, one.stored.parts) for name, one in found.sides.items()}


def clean(job: Job, found: CheckedData, folder: Path | None = None) -> Cleaned:
    """Write the cleaned rows and the list of what was removed, into `folder` or the run's own, and log both."""
    cleaned = fix.write(found, folder or job.folder / "data")
    for file in (*cleaned.files, cleaned.removed):
        job.run.artifact(file, "data")
    job.run.metrics({"data/fixed/kept": float(cleaned.kept_count), "data/fixed/removed": float(cleaned.removed_count)})
    return cleaned
