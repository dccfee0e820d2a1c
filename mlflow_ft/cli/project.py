"""mlflow-ft project init DIR: an MLflow Project for the methods of plugins."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from mlflow_ft import plugins


@click.group()
def command() -> None:
    """Write a project for `mlflow run`, with the plugins that it needs."""


@command.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--method", "methods", multiple=True, help="A method that gets an entry point. Repeatable.")
@click.option("--plugin", "packages", multiple=True, help="An installed plugin, by its package. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")
def init(folder: Path, methods: tuple[str, ...], packages: tuple[str, ...], *, as_json: bool) -> None:
    """Write MLproject, conda.yaml with mlflow-ft and the plugins pinned, and config.yaml to a new folder.

    \b
    mlflow-ft project init my-project --method gentle-lora
    mlflow run my-project -e gentle-lora -P data=/path/to/rows.jsonl

    The plugin that has the method is pinned too, and all of its methods get entry points.
    """
    from mlflow_ft.scaffolding.project import new_project

    made = new_project(folder, methods=methods, packages=packages, plugins=plugins.load())
    if as_json:
        about = {"folder": str(folder.absolute()), "methods": made.methods, "requirements": made.requirements}
        click.echo(json.dumps(about | {"local": made.local}, indent=2))
        return
    click.echo(f"{folder}: entry points {', '.join(('main', *made.methods))}; pinned: {', '.join(made.requirements)}")
    if made.local:
        click.echo("Some packages were installed from a folder of this machine; no other can make this environment.")
    entry = f" -e {made.methods[0]}" if made.methods else ""
    click.echo(f"\nNext:\n  mlflow run {shlex.quote(str(folder))}{entry} -P data=/path/to/rows.jsonl")
