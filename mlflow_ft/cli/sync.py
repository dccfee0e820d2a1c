"""mlflow-ft sync FOLDER: deliver a run's journal after a server outage."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help='Print {"delivered": N} on stdout.')
def command(folder: Path, *, as_json: bool) -> None:
    """Deliver what the run in FOLDER could not send while the tracking server was down.

    Sending twice is harmless: the server stores equal points once.
    """
    from mlflow_ft.tracking import deliver

    sent = deliver(folder)
    click.echo(
        json.dumps({"delivered": sent}) if as_json else f"{sent} entries delivered; {folder} has no more to send"
    )
