"""mlflow-ft plugins new NAME: a complete package for a plugin, from templates."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from mlflow_ft import plugins
from mlflow_ft.errors import ConfigError
from mlflow_ft.scaffolding.kinds import KINDS


class _WithKinds(click.Command):
    """Lists the kinds in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Kinds"):
            formatter.write_dl(list(KINDS.items()))


@click.command(cls=_WithKinds)
@click.argument("name")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), metavar="KIND", help="Repeatable.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="The package's folder; default: NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")
def new(name: str, kinds: tuple[str, ...], folder: Path | None, *, as_json: bool) -> None:
    """Write a complete package for a plugin: it installs, passes its tests, and is active as it stands.

    \b
    mlflow-ft plugins new my-plugin --kind format --kind evaluator
    pip install -e my-plugin
    mlflow-ft plugins
    """
    from mlflow_ft.cli import COMMANDS
    from mlflow_ft.scaffolding.package import new_plugin

    if not kinds:
        raise ConfigError("no kind given: --kind KIND", hint=f"kinds: {', '.join(KINDS)}")
    made = new_plugin(name, kinds, folder or Path(name), plugins.load(), commands=COMMANDS)
    if as_json:
        about = {"name": name, "plugin": made.names.slug, "module": made.names.module, "kinds": made.kinds}
        click.echo(json.dumps(about | {"folder": str(made.folder.absolute()), "files": made.files}, indent=2))
        return
    place = shlex.quote(str(made.folder))
    click.echo(f"{place}: {len(made.files)} files; its code is in {made.names.module}/")
    click.echo(f"\nNext:\n  pip install -e {place}\n  mlflow-ft plugins\n  (cd {place} && python -m pytest)")
