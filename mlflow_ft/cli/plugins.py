"""mlflow-ft plugins: the installed plugins and whether they work."""

from __future__ import annotations

import dataclasses
import json

import click

from mlflow_ft import plugins


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(*, as_json: bool) -> None:
    """List the installed plugins and whether they work."""
    infos = plugins.load().infos
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in infos], indent=2))
        return
    width = max(len(info.name) for info in infos)
    for info in infos:
        line = f"{info.name:<{width}}  {info.status:<7} {info.version:<8} {info.sha256[:12]:<12}"
        click.echo(f"{line} {info.error}".rstrip())
