"""mlflow-ft runs: the runs, their state and their heartbeat."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_ft.tracking.vanished import RunState


@click.command()
@click.option("--reap", is_flag=True, help="Mark runs whose process is gone KILLED.")
@click.option("--away", default=900, show_default=True, help="Seconds after which a run on another machine is gone.")
@click.option("--most", default=20, show_default=True, help="How many runs to list.")
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON on stdout.")
def command(*, reap: bool, away: int, most: int, as_json: bool) -> None:
    """List the latest runs: state, stage, step, and the age of the heartbeat.

    A run that is RUNNING although its process is gone is shown as vanished. `--reap` marks such runs KILLED; so does
    the next command that opens a run. On another machine only the heartbeat shows whether a process is alive, every 30
    seconds: it counts as gone after --away seconds without one.
    """
    from mlflow_ft.progress import Progress
    from mlflow_ft.tracking import vanished

    reaped = vanished.reap(away=away) if reap else []
    states = vanished.states(most=most, away=away)
    if as_json:
        outcome = {"runs": [asdict(state) for state in states], "reaped": [state.run_id for state in reaped]}
        click.echo(json.dumps(outcome, indent=2))
        return
    progress = Progress()
    columns = ("run", "name", "method", "state", "stage", "step", "heartbeat")
    progress.table("", columns, [row(state) for state in states], text=(0, 1, 2, 3, 4), whole=(0,))
    for state in reaped:
        progress.say(f"{state.run_id}: its process is gone; marked KILLED")


def row(state: RunState) -> tuple[str, ...]:
    """A run as a line of the table."""
    shown = f"{state.status}, vanished" if state.vanished else state.status
    step = "" if state.step is None else f"{state.step:,}"
    return state.run_id, state.name, state.method, shown, state.stage, step, age(state.heartbeat_age)


def age(seconds: float | None) -> str:
    """A number of seconds as readable text."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
