"""mlflow-ft sync FOLDER: deliver a run's journal after an outage."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help='Print {"delivered": N} on stdout.')
def command(folder: Path, *, as_json: bool) -> None:
    """Deliver to the tracking server what the run in FOLDER could not while the server was away.

    Sending twice is harmless: the server keeps one of two equal points.
    """
    from mlflow_ft.tracking import deliver

    sent = deliver(folder)
    click.echo(json.dumps({"delivered": sent}) if as_json else f"{sent} entries delivered; nothing is left in {folder}")
