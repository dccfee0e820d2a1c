"""mlflow-ft hooks [NAME]: every hook, when it is called, and which plugins implement it."""

from __future__ import annotations

import inspect
import json

import click

from mlflow_ft import hookspecs, plugins
from mlflow_ft.errors import PluginError
from mlflow_ft.registry import suggest

SAID_OF_NO_ONE = "no plugin"


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(name: str | None, *, as_json: bool) -> None:
    """List every hook and the plugins that implement it; with NAME, its arguments and its contract."""
    loaded = plugins.load()
    arguments = loaded.arguments
    if name and name not in arguments:
        raise PluginError(f"there is no hook {name!r}", hint=suggest(name, arguments))
    rows = [
        {
            "name": hook,
            "arguments": list(names),
            "summary": (inspect.getdoc(getattr(hookspecs, hook)) or "").partition("\n\n")[0].replace("\n", " "),
            "plugins": [one.plugin_name for one in getattr(loaded.hook, hook).get_hookimpls()],
        }
        for hook, names in arguments.items()
        if name in (None, hook)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if name:
        click.echo(f"{name}{inspect.signature(getattr(hookspecs, name))}\n")
        click.echo(inspect.getdoc(getattr(hookspecs, name)))
        click.echo(f"\nimplemented by: {', '.join(rows[0]['plugins']) or SAID_OF_NO_ONE}")
        return
    width = max(len(hook) for hook in arguments)
    for row in rows:
        others = [plugin for plugin in row["plugins"] if not plugin.startswith("builtin.")]
        click.echo(f"{row['name']:<{width}}  {row['summary']}" + (f"  ({', '.join(others)})" if others else ""))
