"""mlflow-ft preflight METHOD: every check that a run makes before it begins, without a run."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps

import click

from mlflow_ft.cli.pairs import PairsCommand

SWITCHES = {"json": "Print the checks as JSON on stdout."}


@click.command(cls=PairsCommand, options_metavar="METHOD [--KEY VALUE]...", switches=SWITCHES)
def command(arguments: tuple[str, ...], *, json: bool) -> int:
    """Check in seconds whether a training with METHOD could run here: settings, MLflow, model, data, device, disk.

    These are the checks with which every run begins. No run is opened, no weight is loaded, and nothing is left behind.
    The exit code is 2 if there is a problem.

    \b
    mlflow-ft preflight qlora --model MODEL --data rows.jsonl
    """
    from mlflow_ft.cli.train import understand
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry
    from mlflow_ft.stages import preflight

    progress = Progress()
    config, loaded = understand(arguments, Progress(quiet=True))
    examination = preflight.examine(config, plugins=loaded, registry=Registry(loaded))
    inspected = examination.inspected
    if json:
        outcome = {"ready": examination.refused is None, "checks": [asdict(entry) for entry in inspected]}
        click.echo(dumps(outcome, indent=2))
    else:
        rows = [(entry.check, entry.state, entry.detail, entry.remedy) for entry in inspected]
        progress.table("", ("check", "state", "detail", "remedy"), rows, text=(0, 1, 2, 3))
        progress.say(summary([entry.state for entry in inspected]))
    if examination.refused:
        preflight.report_to_run(examination.refused)
        return examination.refused.exit_code
    return 0


def summary(states: list[str]) -> str:
    """The outcome in one line."""
    problems, warnings = states.count("problem"), states.count("warning")
    counted = [f"{count} {name}{'s' * (count > 1)}" for count, name in ((problems, "problem"), (warnings, "warning"))]
    parts = [part for part, count in zip(counted, (problems, warnings), strict=True) if count]
    return f"{len(states)} checks: {', '.join(parts) or 'all is well'}"
