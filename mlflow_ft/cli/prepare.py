"""mlflow-ft prepare: run the data stage alone, in its own run."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_ft.cli.pairs import PairsCommand

if TYPE_CHECKING:
    from mlflow_ft.pipeline import Prepared

SWITCHES = {
    "fix": "Write a cleaned copy of the rows and a list of what was removed and why.",
    "json": "Print the outcome as JSON on stdout.",
    "quiet": "Print errors only.",
}
OPTIONS = {"out FOLDER": "Where --fix writes; default: the run's folder."}


@click.command(cls=PairsCommand, options_metavar="[DATA] [--KEY VALUE]...", switches=SWITCHES, options=OPTIONS)
def command(arguments: tuple[str, ...], *, fix: bool, json: bool, quiet: bool, out: str | None) -> None:
    """Read, check and tokenise the rows, verify the loss masks, and log the results to an MLflow run.

    \b
    mlflow-ft prepare --data rows.jsonl --model MODEL
    mlflow-ft prepare --data rows.jsonl --model MODEL --fix --out cleaned
    """
    from mlflow_ft import pipeline
    from mlflow_ft.cli.train import understand
    from mlflow_ft.progress import Progress
    from mlflow_ft.stages.start import PREPARE

    progress = Progress(quiet=quiet)
    config, loaded = understand(arguments, progress, method=PREPARE)
    done = pipeline.prepare(config, loaded, fix=fix, out=Path(out).expanduser() if out else None, progress=progress)
    if json:
        click.echo(dumps(as_dict(done), indent=2))
        return
    progress.facts({"run": done.run_id, "tracking": done.url or done.tracking_uri, "report": "data/quality.html"})
    if done.cleaned:
        progress.say(f"{done.cleaned.kept_count:,} rows kept, {done.cleaned.removed_count:,} removed:")
        progress.facts({"rows": ", ".join(map(str, done.cleaned.files)), "removed": str(done.cleaned.removed)})


def as_dict(done: Prepared) -> dict[str, Any]:
    """The outcome as JSON: the run, the data's fingerprint and counts, the report, the files written."""
    data = done.data.data
    outcome: dict[str, Any] = {
        "run_id": done.run_id,
        "tracking_uri": done.tracking_uri,
        "format": data.format,
        "fingerprint": data.fingerprint,
        "train": dict(data.train.counts),
        "eval": dict(data.eval.counts),
        "quality": done.data.report.as_dict(),
    }
    if done.cleaned:
        outcome |= {
            "clean": [str(file) for file in done.cleaned.files],
            "removed": str(done.cleaned.removed),
            "kept_count": done.cleaned.kept_count,
            "removed_count": done.cleaned.removed_count,
        }
    return outcome
