"""mlflow-ft package RUN_ID: finish a run that was trained but not packaged."""

from __future__ import annotations

from json import dumps

import click

from mlflow_ft.errors import ConfigError


@click.command()
@click.argument("named", metavar="RUN_ID", default="")
@click.option("--run_id", default="", help="The same as RUN_ID.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(*, named: str, run_id: str, as_json: bool, quiet: bool) -> None:
    """Package and register the model of a run that failed or was stopped after training.

    \b
    mlflow-ft package 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c

    The trained weights are read from the run's folder; nothing is trained again. As at the end of training, the model
    is scored, every form of it is compared with the trained one, and the versions are registered. The run is reopened
    and ends FINISHED. Start it in the folder where training was started, with the same base model and data: both are
    compared with what the run recorded.
    """
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.cli.train import as_dict, report
    from mlflow_ft.progress import Progress

    if not (named or run_id):
        raise ConfigError("no run given", hint="mlflow-ft package RUN_ID; the failed training printed the id")
    progress = Progress(quiet=quiet)
    outcome = pipeline.resume(named or run_id, plugins.load(), only_package=True, progress=progress)
    if as_json:
        click.echo(dumps(as_dict(outcome), indent=2))
    else:
        report(outcome, progress)
