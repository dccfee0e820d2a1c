"""mlflow-ft sweep METHOD: search the settings of a method, and register the best model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from json import dumps
from typing import TYPE_CHECKING, Any

import click

from mlflow_ft.cli.pairs import PairsCommand, share, whole_number
from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlflow_ft.operations.sweeping.sweep import SweepOutcome
    from mlflow_ft.progress import Progress

SWITCHES = {
    "json": "Print the outcome as JSON on stdout.",
    "keep-weights": "Keep the weights of every trial, not only of the best one.",
    "quiet": "Print errors only.",
}
OPTIONS = {
    "sweep FILE": "A YAML file with the settings to search; the usual ranges of the method when not given.",
    "budget N": "Trials (20), or minutes after which no further trial begins (90m). [20]",
    "workers N": "Trials to run at once, each in its own process; 1, or on a cluster as many as it has room for.",
    "cpus-per-trial N": "CPUs of a trial, with a launcher that starts trials on a cluster.",
    "gpus-per-trial N": "GPUs of a trial, or a share of one (0.5), with such a launcher.",
    "objective SCORE": "The score that decides; the method's own when not given.",
    "direction D": "minimize or maximize; refused if it contradicts the score.",
    "resume RUN": "Resume the sweep of this run; trials that have ended are not repeated.",
}


@click.command(cls=PairsCommand, options_metavar="METHOD [--KEY VALUE]...", switches=SWITCHES, options=OPTIONS)
def command(arguments: tuple[str, ...], *, resume: str | None, json: bool, quiet: bool, **options: Any) -> None:
    """Search the settings of METHOD: each trial is a nested run, and the best trial's model is registered.

    \b
    mlflow-ft sweep lora --model ./my-model --data rows.jsonl
    mlflow-ft sweep lora --sweep space.yaml --budget 90m --workers 2 --objective exact_match
    mlflow-ft sweep lora --launch.launcher ray --gpus-per-trial 0.5
    mlflow-ft sweep --resume 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c
    """
    from mlflow_ft.cli import sweeps
    from mlflow_ft.progress import Progress

    progress, words = Progress(quiet=quiet), arguments[1:] if arguments[:1] == ("",) else arguments
    wanted = sweeps.Asked(
        workers=whole_number("workers", options.pop("workers"), None),
        cpus=share("cpus-per-trial", options.pop("cpus_per_trial")),
        gpus=share("gpus-per-trial", options.pop("gpus_per_trial")),
        **options,
    )
    if resume:
        if given := [name for name in ("sweep", "objective", "direction") if options[name]]:
            raise ConfigError(
                f"--{given[0]}: the sweep has recorded it",
                hint="only the budget, the workers and what each takes change",
            )
        outcome = sweeps.resume(resume, words, wanted, progress=progress)
    else:
        outcome = sweeps.begin(words, wanted, progress)
    show(outcome, progress, json=json)


def show(outcome: SweepOutcome, progress: Progress, *, json: bool) -> None:
    """Print the outcome: JSON on stdout, or the trials and what was registered."""
    from mlflow_ft.operations.sweeping.report import CAVEAT, shown

    if json:
        click.echo(dumps(asdict(replace(outcome, url=None)) | {"url": outcome.url}, indent=2))
        return
    columns = [name for name in outcome.best if name not in ("run", "error")]
    progress.table("Trials", columns, [[shown(row[name]) for name in columns] for row in outcome.trials], text=(1,))
    progress.facts(
        {
            "run": outcome.run_id,
            "tracking": outcome.url or outcome.tracking_uri,
            "best": f"trial-{outcome.best['trial']}, run {outcome.best_run_id}",
            "registered": ", ".join(_version(version) for version in outcome.versions),
        }
    )
    progress.say(CAVEAT)


def _version(version: Mapping[str, Any]) -> str:
    return f"{version['name']} version {version['version']}"
