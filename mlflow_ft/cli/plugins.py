"""mlflow-ft plugins [new]: the installed plugins and whether they work; a new one from templates."""

from __future__ import annotations

import dataclasses
import json

import click

from mlflow_ft import plugins
from mlflow_ft.cli.new_plugin import new


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List the installed plugins and whether they work; `mlflow-ft plugins new` writes one."""
    if context.invoked_subcommand is None:
        _list(as_json=as_json)


command.add_command(new)


def _list(*, as_json: bool) -> None:
    infos = plugins.load().infos
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in infos], indent=2))
        return
    width = max(len(info.name) for info in infos)
    for info in infos:
        line = f"{info.name:<{width}}  {info.status:<7} {info.version:<8} {info.sha256[:12]:<12}"
        click.echo(f"{line} {info.error}".rstrip())
