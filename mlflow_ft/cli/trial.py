"""mlflow-ft trial: one trial of a sweep; the sweep starts it, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from socket import gethostname

import click


@click.command(hidden=True)
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("sweep")
@click.argument("number", type=int)
@click.option("--accept-changes", is_flag=True, help="Continue an interrupted trial although something changed.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(study: Path, *, sweep: str, number: int, accept_changes: bool, quiet: bool) -> None:
    """Run the trial NUMBER of SWEEP, drawn in the file STUDY, in the run that MLFLOW_RUN_ID names."""
    from mlflow_ft import pipeline
    from mlflow_ft.cli.train import understand
    from mlflow_ft.errors import ConfigError
    from mlflow_ft.operations.sweeping.trial import Trial
    from mlflow_ft.progress import Progress

    progress = Progress(quiet=quiet)
    if not study.is_file():
        raise ConfigError(
            f"the study of the sweep, {study}, is not on this machine ({gethostname()})",
            hint="put it on a disk that all machines share: with an SQLite store it is beside the store, otherwise in "
            "--run.output_dir",
        )
    trial = Trial(study, sweep, number)
    config, loaded = understand(trial.arguments, progress)
    pipeline.trial(config, loaded, trial, accept_changes=accept_changes, progress=progress)
