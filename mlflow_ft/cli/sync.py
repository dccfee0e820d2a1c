"""mlflow-ft sync FOLDER: deliver a run's journal after an outage."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(folder: Path) -> None:
    """Deliver to the tracking server what the run in FOLDER could not while the server was away.

    Sending twice is harmless: the server keeps one of two equal points.
    """
    from mlflow_ft.tracking import deliver

    sent = deliver(folder)
    click.echo(f"{sent} entries delivered; nothing is left in {folder}")
