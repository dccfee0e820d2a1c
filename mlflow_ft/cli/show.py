"""mlflow-ft show KIND: what is registered, which plugin provides it, and its defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from mlflow_ft import plugins
from mlflow_ft.plugins import KINDS
from mlflow_ft.records import Options, Trainer

MORE = {
    "formats": ("kind", "columns"),
    "checks": ("severity", "remedy", "fix"),
    "trainers": ("needs", "use_for", "memory", "ranges", "scores"),
    "adapters": ("merges", "use_for", "memory", "ranges"),
    "gates": ("options",),
    "guards": ("licence",),
    "plan_rules": ("priority", "source"),
}
"""What is shown of a record in addition to its name and summary, by kind."""
SAID = {"use_for": "for", "ranges": "usual", "scores": "measured by"}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {text}" for key, text in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


@click.command(epilog=f"KIND is one of {', '.join(sorted(KINDS))}.")
@click.argument("kind", metavar="KIND", type=click.Choice(sorted(KINDS)))
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(kind: str, name: str | None, *, as_json: bool) -> None:
    """List the available records of a kind, a line each; with NAME, everything about one.

    \b
    mlflow-ft show trainers             every method
    mlflow-ft show trainers dpo         what it is for, what it needs, its settings and their defaults
    mlflow-ft show options judge        the settings of a plugin
    """
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
        | {key: getattr(record, key) for key in MORE.get(kind, ())}
        for record in ([catalogue[name]] if name else catalogue)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['summary']}  ({row['provider']})")
        if not name:
            continue
        for key in MORE.get(kind, ()):
            if row[key] not in ("", {}, ()):
                click.echo(f"{'':<4}{SAID.get(key, key)}: {_words(row[key])}")
        if row["paper"]:
            click.echo(f"{'':<4}{row['paper']}")
        lines = []
        if kind == "trainers":
            lines = _settings(catalogue[row["name"]])
        elif kind == "options":
            lines = _options(catalogue[row["name"]])
        for line in lines:
            click.echo(f"{'':<4}{line}")


def _options(options: Options) -> list[str]:
    """The settings of a plugin, as they are written on the command line."""
    from mlflow_ft.config.explain import describe
    from mlflow_ft.config.plugin_options import schema_with

    described = describe(schema_with({options.name: options.fields}))
    return [f"--{row.path} {row.type} [{row.default}]  {row.doc}" for row in described if row.path.count(".") == 2]


def _settings(trainer: Trainer) -> list[str]:
    """The settings that a method trains with by default; those that it sets itself are marked with `*`."""
    from mlflow_ft.config import describe, resolve

    defaults = trainer.defaults
    values = resolve(trainer.name, defaults=defaults).flat()
    docs = {path: doc for path, _, _, doc in describe()}
    own = values["adapter.kind"] != "none"
    sections = ["training.", *(("adapter.", "model.quantize") if own else ("adapter.kind",))]
    sections += [f"{section}.{name}" for section in ("objective", "rollout") for name in trainer.settings or ()]
    return [
        f"{'*' if path in defaults else ' '} {path} = {'' if value is None else value}".rstrip().ljust(46)
        + f"  {docs[path]}"
        for path, value in values.items()
        if path in defaults or path.startswith(tuple(sections))
    ]
