"""mlflow-ft show KIND: what is registered, by whom, and with which defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from mlflow_ft import plugins
from mlflow_ft.plugins import KINDS

MORE = {"formats": ("kind", "columns"), "checks": ("severity", "remedy", "fix"), "trainers": ("kinds",)}
"""What is told of a record beside its name and summary, by kind."""


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


@click.command()
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(kind: str, *, as_json: bool) -> None:
    """List the formats, checks, trainers, adapters, evaluators or packagers there are."""
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
        | {name: getattr(record, name) for name in MORE.get(kind, ())}
        for record in catalogue
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    for row in rows:
        click.echo(f"{row['name']:<18} {row['summary']}  ({row['provider']})")
        for name in MORE.get(kind, ()):
            if row[name]:
                click.echo(f"{'':<18}   {name}: {_words(row[name])}")
        if row["paper"]:
            click.echo(f"{'':<18}   {row['paper']}")
        for line in settings(row["name"], row["defaults"]) if kind == "trainers" else ():
            click.echo(f"{'':<18}   {line}")


def settings(method: str, defaults: Mapping[str, Any]) -> list[str]:
    """The settings that a method trains with when nothing else is given; those of its own are marked."""
    from mlflow_ft.config import describe, resolve

    values = resolve(method, defaults=defaults).flat()
    docs = {path: doc for path, _, _, doc in describe()}
    own = values["adapter.kind"] != "none"
    sections = ("adapter.", "training.", "model.quantize") if own else ("adapter.kind", "training.")
    return [
        f"{'*' if path in defaults else ' '} {path} = {'' if value is None else value}".rstrip().ljust(46)
        + f"  {docs[path]}"
        for path, value in values.items()
        if path.startswith(sections)
    ]
