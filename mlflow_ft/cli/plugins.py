"""mlflow-ft plugins [new]: the installed plugins and whether they work; a new one from templates."""

from __future__ import annotations

import dataclasses
import json

import click

from mlflow_ft import plugins
from mlflow_ft.cli.new_plugin import new
from mlflow_ft.errors import PluginError
from mlflow_ft.plugins import PluginInfo
from mlflow_ft.plugins.listing import singular

SHOWN_NAMES = 3
"""So many records of a plugin are named in the table; of more, their number is shown."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
@click.option("--check", is_flag=True, help="Exit with 2 if a plugin is broken or clashes with another.")
@click.option("--verbose", is_flag=True, help="Also print the module, the hash, every record and hook, and notes.")
@click.pass_context
def command(context: click.Context, *, as_json: bool, check: bool, verbose: bool) -> None:
    """List the installed plugins: whether they work, and what they provide.

    \b
    active      loaded
    broken      left out, for the reason that is shown
    clash       left out: another plugin registers the same name
    disabled    not loaded, since it was not chosen or is not allowed
    """
    if context.invoked_subcommand is not None:
        return
    infos = plugins.load().infos
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in infos], indent=2))
    else:
        width = max(len(info.name) for info in infos)
        for info in infos:
            click.echo(_line(info, width).rstrip())
            for text in _more(info) if verbose else info.notes:
                click.echo(f"{'':<{width}}    {text}")
    if check and (faulty := [info for info in infos if info.faulty]):
        raise PluginError(
            f"{len(faulty)} of {len(infos)} plugins cannot be used: {', '.join(info.name for info in faulty)}",
            hint="fix or uninstall them, or choose others with MLFLOW_FT_PLUGINS=name,name",
        )


command.add_command(new)


def _line(info: PluginInfo, width: int) -> str:
    """Name, status, version, load time, and what it provides or why it is not active."""
    time = f"{info.load_seconds * 1000:.0f} ms" if info.load_seconds else ""
    return f"{info.name:<{width}}  {info.status:<8} {info.version:<8} {time:>7}  {info.error or _provided(info)}"


def _provided(info: PluginInfo) -> str:
    """`trainers sft, dpo; 14 checks; after_evaluate`."""
    by_kind: dict[str, list[str]] = {}
    for kind in plugins.KINDS:
        prefix = f"{singular(kind)} "
        if names := [record.removeprefix(prefix) for record in info.provides if record.startswith(prefix)]:
            by_kind[kind.replace("_", " ")] = names
    parts = [
        f"{len(names)} {kind}" if len(names) > SHOWN_NAMES else f"{kind} {', '.join(names)}"
        for kind, names in by_kind.items()
    ]
    return "; ".join([*parts, *info.hooks])


def _more(info: PluginInfo) -> list[str]:
    lines = [f"module {info.module or 'was not imported'}", *([f"sha256 {info.sha256}"] if info.sha256 else [])]
    return [*lines, *info.provides, *(f"hook {hook}" for hook in info.hooks), *(f"note: {note}" for note in info.notes)]
