"""mlflow-ft history NAME: every move of an alias, with who made it, when and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlflow_ft.tracking.promotion import Move


@click.command()
@click.argument("name")
@click.option("--of", "alias", default="champion", show_default=True, help="The alias.")
@click.option("--all", "every", is_flag=True, help="Include moves that came too late and changed nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the moves as JSON on stdout.")
def command(name: str, *, alias: str, every: bool, as_json: bool) -> None:
    """List every move of an alias of the registered model NAME, oldest first."""
    from mlflow_ft.tracking import Store, vanished

    vanished.reap_quietly()
    store = Store.connect()
    store.check_model(name)
    ledger = store.ledger(name, alias)
    standing = ledger.standing()
    moves = ledger.attempts() if every else list(standing.moves)
    if as_json:
        outcome = {"name": name, "alias": alias, "version": standing.champion, "moved_by_hand": standing.by_hand}
        click.echo(json.dumps(outcome | {"moves": [as_dict(move) for move in moves]}, indent=2))
        return
    for move in moves:
        click.echo(line(move))
    has = "no version" if standing.champion is None else f"version {standing.champion}"
    click.echo(f"{alias} of {name}: {has}" + ("; set outside mlflow-ft" if standing.by_hand else ""))


def as_dict(move: Move) -> dict[str, Any]:
    """A move as JSON."""
    plain = ("number", "kind", "alias", "before", "after", "by", "reason", "decision", "done", "counts")
    return {"at": _when(move)} | {name: getattr(move, name) for name in plain}


def line(move: Move) -> str:
    """A move as one line of text."""
    before = "none" if move.before is None else str(move.before)
    parts = [_when(move), move.kind, f"{before} -> {move.after}", f"by {move.by}"]
    if not move.counts:
        parts.append("came too late")
    elif not move.done:
        parts.append("not completed yet")
    return "  ".join([*parts, *(text for text in (move.reason, move.decision) if text)])


def _when(move: Move) -> str:
    return datetime.fromtimestamp(move.at_ms / 1000, UTC).isoformat(timespec="seconds")
