"""mlflow-ft rollback NAME: restore the previous champion."""

from __future__ import annotations

import json
import time

import click


@click.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; recorded in the history.")
@click.option("--of", "alias", default="champion", show_default=True, help="The alias to move back.")
@click.option("--to", type=click.IntRange(min=1), help="The version to go back to; default: the previous champion.")
@click.option("--by", help="Who decides; default: the user's name.")
@click.option("--json", "as_json", is_flag=True, help="Print the move as JSON on stdout.")
def command(name: str, *, reason: str, alias: str, to: int | None, by: str | None, as_json: bool) -> None:
    """Move the alias of the registered model NAME back to the previous champion, without checking gates.

    \b
    mlflow-ft rollback NAME --reason "answers in the wrong language"
    """
    from mlflow_ft.cli.history import as_dict
    from mlflow_ft.cli.promote import who
    from mlflow_ft.operations.promoting.rollback import rollback

    done = rollback(name, alias=alias, reason=reason, by=by or who(), now_ms=int(time.time() * 1000), to=to)
    if as_json:
        click.echo(json.dumps(as_dict(done.move), indent=2))
    else:
        click.echo(f"{name} version {done.move.after} is the {alias} again; it was version {done.move.before}")
