"""mlflow-ft sync FOLDER: deliver what a run could not send while the tracking server was away, and finish it."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help='Print {"delivered": N, "versions": [...]} on stdout.')
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, *, as_json: bool, quiet: bool) -> None:
    """Deliver what the run in FOLDER could not send while the tracking server was away.

    Metrics, tags and artifacts are sent, then the run's state. If the models could not be logged or registered, the run
    is finished now: nothing is trained again. Sending twice is harmless: the server stores everything once.
    """
    from mlflow_ft.tracking import deliver, take_up

    sent = deliver(folder)
    if not (as_json or quiet):
        click.echo(f"{sent} entries delivered; {folder} has no more to send")
    versions: object = []
    if run_id := take_up(folder):
        from mlflow_ft import pipeline, plugins
        from mlflow_ft.cli.train import as_dict, report
        from mlflow_ft.progress import Progress

        progress = Progress(quiet=quiet)
        outcome = pipeline.resume(run_id, plugins.load(), only_package=True, progress=progress)
        versions = as_dict(outcome)["versions"]
        if not as_json:
            report(outcome, progress)
    if as_json:
        click.echo(json.dumps({"delivered": sent, "versions": versions}))
