"""mlflow-ft data show | check | find-models: inspect data without a run."""

from __future__ import annotations

import itertools
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_ft.cli.pairs import PairsCommand, whole_number

if TYPE_CHECKING:
    from mlflow_ft.config import Config
    from mlflow_ft.plugins import Plugins
    from mlflow_ft.preparing.dataset import CheckedData
    from mlflow_ft.preparing.show import ShownRow
    from mlflow_ft.progress import Progress

FEW = 5
"""Rows shown by default; --json prints all of them."""


@click.group()
def command() -> None:
    """Inspect data: show what is learned, check it, find the models trained on it."""


@command.command(
    cls=PairsCommand,
    options_metavar="[DATA] [--KEY VALUE]...",
    short_help="Show rows with the learned tokens marked.",
    switches={"json": "Print one JSON object per row on stdout."},
    options={"limit N": f"Stop after N rows (default: {FEW}; all with --json)."},
)
def show(arguments: tuple[str, ...], *, json: bool, limit: str | None) -> None:
    """Show rows as the trainer sees them, token by token, with the learned tokens marked.

    \b
    mlflow-ft data show --data rows.jsonl --model MODEL
    mlflow-ft data show --data rows.jsonl --model MODEL --json --limit 100

    With --json each row is {"row", "file", "line", "format", "messages", "tokens": [text...],
    "supervised": [0 or 1...], "mask": how the mask was derived, "rejected": the rejected answer of a
    preference, "turn": the learned turn if --data.turns splits rows, "unwritten_thoughts": turns whose
    thoughts the template leaves out, "cut": what data.max_length cuts off ({"max_length", "tokens",
    "cut_away", "learned_cut_away", "end_of_turn_lost"}) or null, "dropped": why nothing is learned from
    the row, or null}.
    """
    from mlflow_ft.pipeline import clock_of
    from mlflow_ft.preparing import show as stage
    from mlflow_ft.registry import Registry

    most = whole_number("limit", limit, None if json else FEW)
    config, loaded, tokenizer, progress = _opened(arguments)
    rows = stage.every_row(config, tokenizer, plugins=loaded, registry=Registry(loaded), tell=progress.say)
    dropped = total = cut = 0
    with clock_of(config):
        for row in itertools.islice(rows, most):
            total, dropped, cut = total + 1, dropped + (row.dropped is not None), cut + (row.cut is not None)
            click.echo(dumps(row.as_dict(), ensure_ascii=False) if json else _for_people(row))
    summary = f"{total:,} row{'' if total == 1 else 's'}"
    summary += f"; {dropped:,} dropped" if dropped else ""
    summary += f"; {cut:,} cut at data.max_length {config.data.max_length:,}" if cut else ""
    progress.say(summary)


def _for_people(row: ShownRow) -> str:
    """A row with its learned tokens in green, between [[ and ]]."""
    from mlflow_ft.preparing import show as stage

    learned = f"{sum(row.supervised)} of {len(row.tokens)} tokens are learned ({row.way})" if row.tokens else ""
    head = click.style(f"{row.place}  {row.format}  {learned}", bold=True)
    lines = [head, *([click.style(f"dropped: {row.dropped}", fg="red")] if row.dropped else [])]
    if row.unwritten:
        turns = ", ".join(map(str, row.unwritten))
        warning = f"the template leaves out the thoughts of turn {turns}: they are not learned"
        lines.append(click.style(warning, fg="yellow"))
    parts = [("", row.tokens, row.supervised, row.cut)]
    if row.rejected:
        parts.append(("rejected:", row.rejected["tokens"], row.rejected["supervised"], row.rejected["cut"]))
    for label, tokens, supervised, cut in parts:
        marked = "".join(
            click.style(f"[[{text}]]", fg="green") if is_learned else text
            for is_learned, text in stage.runs(tokens, supervised)
        )
        lines += [label] * bool(label) + [marked] * bool(tokens)
        lines += [click.style(f"... {stage.words_for_cut(cut)}", fg="yellow")] if cut else []
    return "\n".join([*lines, ""])


@command.command(
    cls=PairsCommand,
    options_metavar="[DATA] [--KEY VALUE]...",
    short_help="Check the data and report problems.",
    switches={"json": "Print the report as JSON on stdout."},
    options={"out FOLDER": "Also write quality.json and quality.html to this folder."},
)
def check(arguments: tuple[str, ...], *, json: bool, out: str | None) -> None:
    """Check the data for duplicates, empty answers, secrets, contamination of the held-out rows, and more.

    \b
    mlflow-ft data check --data rows.jsonl --model MODEL
    mlflow-ft data check --data rows.jsonl --model MODEL --checks.benchmarks gsm8k.jsonl --out report

    The exit code is 1 if a check found something at least as severe as data.fail_on.
    """
    from mlflow_ft.pipeline import clock_of
    from mlflow_ft.preparing import dataset
    from mlflow_ft.registry import Registry

    config, loaded, tokenizer, progress = _opened(arguments)
    registry = Registry(loaded)
    with clock_of(config):
        prepared = dataset.prepare(
            config, tokenizer, plugins=loaded, registry=registry, progress=progress, strict=False
        )
    report = prepared.report.as_dict()
    if out:
        _write(report, Path(out).expanduser(), config)
    if json:
        click.echo(dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_report(prepared)
    stopping = config.data.fail_on != "never" and prepared.report.worst(
        "error" if config.data.fail_on == "error" else "warn"
    )
    if stopping:
        progress.warn(f"training would stop here: {', '.join(check.name for check in stopping)} (data.fail_on)")
        click.get_current_context().exit(1)


def _print_report(prepared: CheckedData) -> None:
    """Print the findings as a table, with example rows, then the checks that found nothing."""
    import sys

    from mlflow_ft.preparing.checking import ADVISED, BY_TEXT
    from mlflow_ft.progress import Progress

    output = Progress(stream=sys.stdout)
    columns, rows = prepared.report.table()
    names = {check.name for check in prepared.report.checks if check.count}
    if names:
        shown = [row for row in rows if row[0] in names]
        output.table(f"{prepared.report.rows:,} rows ({prepared.data.format})", columns, shown, text=(0, 1, 4))
    if prepared.eval.by_text:
        output.say(f"split: {BY_TEXT}")
    for check in prepared.report.checks:
        for example in check.examples if check.count else ():
            output.say(f"{check.name}: {example['file']}:{example['line']}  {example.get('message', '')}".rstrip())
        if check.count and check.name in ADVISED:
            output.say(f"{check.name}: {check.remedy}")
    clean = ", ".join(check.name for check in prepared.report.checks if not check.count)
    output.say(f"nothing found: {clean}")


def _write(report: dict[str, Any], folder: Path, config: Config) -> None:
    from mlflow_ft.data import pages

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.json").write_text(dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    page = pages.quality_page(report, title=", ".join(config.data.sources))
    (folder / "quality.html").write_text(page, encoding="utf-8")


@command.command("find-models", short_help="List the model versions trained on rows of a file.")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def find_models(file: str, *, as_json: bool) -> None:
    """List the registered model versions trained on rows of FILE, even if the file had another name then."""
    from mlflow_ft import plugins, tracking
    from mlflow_ft.config.schema import DataSection
    from mlflow_ft.data import lineage, sources
    from mlflow_ft.registry import Registry

    loaded = plugins.load()
    source = sources.open_source(file, DataSection(path=file))
    wanted = lineage.hashes_of(source, plugins=loaded, registry=Registry(loaded))
    versions = [version for version in tracking.versions_with_rows() if (version.rows & wanted)]
    rows: list[dict[str, Any]] = [
        {
            "name": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "run_id": version.run_id,
            "shared_rows": len(version.rows & wanted),
            "rows_of_file": len(wanted),
            "rows_trained_on": len(version.rows),
        }
        for version in versions
    ]
    if as_json:
        click.echo(dumps(rows, indent=2))
        return
    for row in rows:
        alias = "".join(f" @{name}" for name in row["aliases"])
        click.echo(
            f"{row['name']} version {row['version']}{alias}: {row['shared_rows']:,} of the file's "
            f"{row['rows_of_file']:,} rows are among its {row['rows_trained_on']:,} training rows (run {row['run_id']})"
        )
    if not rows:
        click.echo(f"no registered version was trained on a row of {file}", err=True)


def _opened(arguments: tuple[str, ...]) -> tuple[Config, Plugins, Any, Progress]:
    """The config, the plugins, the model's tokenizer, and the progress output."""
    from mlflow_ft.cli.train import understand
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry
    from mlflow_ft.stages import fitting, preflight
    from mlflow_ft.stages.start import PREPARE

    progress = Progress()
    config, loaded = understand(arguments, progress, method=PREPARE)
    preflight.check_inputs(config, plugins=loaded, registry=Registry(loaded))
    from mlflow_ft.engine import hub  # slow to import: not before a mistyped path is reported
    from mlflow_ft.engine.tokens import tokenizers

    base = hub.find(config.model, progress, weights=False)
    config = fitting.fitted(config, base, Registry(loaded), progress)
    return config, loaded, tokenizers.load(config, base), progress
