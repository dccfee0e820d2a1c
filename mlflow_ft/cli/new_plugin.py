"""mlflow-ft plugins new NAME: a complete package for a plugin, from templates."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Write a package for a new plugin."""
    raise click.UsageError(f"no templates for {name} yet")
