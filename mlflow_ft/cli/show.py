"""mlflow-ft show KIND: what is registered, by whom, and with which defaults."""

from __future__ import annotations

import json

import click

from mlflow_ft import plugins
from mlflow_ft.plugins import KINDS


@click.command()
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(kind: str, *, as_json: bool) -> None:
    """List the formats, trainers, adapters, evaluators or packagers there are."""
    from mlflow_ft.registry import Registry

    catalogue = getattr(Registry(plugins.load()), kind)
    rows = [
        {
            "name": record.name,
            "summary": record.summary,
            "provider": catalogue.provider(record.name),
            "defaults": dict(getattr(record, "defaults", {})),
            "paper": getattr(record, "paper", ""),
        }
        for record in catalogue
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:<18} {row['summary']}  ({row['provider']})")
        for key, value in row["defaults"].items():
            click.echo(f"{'':<18}   {key} = {value}")
        if row["paper"]:
            click.echo(f"{'':<18}   {row['paper']}")
