"""mlflow-ft reproduce RUN_ID: train a run again from its record and compare the results."""

from __future__ import annotations

from json import dumps
from pathlib import Path

import click

from mlflow_ft.errors import ConfigError


@click.command()
@click.argument("named", metavar="RUN_ID", default="")
@click.option("--run_id", default="", help="The same as RUN_ID.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Compare losses within this; 0: all, bit for bit.")
@click.option("--output_dir", "--run.output_dir", default="", help="Another folder for the new run's files.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(*, named: str, run_id: str, tolerance: float | None, output_dir: str, as_json: bool, quiet: bool) -> None:
    """Train a run again from what it recorded, and compare curves, scores and weights.

    \b
    mlflow-ft reproduce 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c

    The new run has the same configuration, seed, data, base model and clock, and the tag mlflow_ft.reproduces. Nothing
    is registered. On a CPU with the same processor, threads, versions, plugins and code, everything must be equal bit
    for bit; otherwise losses must be equal within a tolerance. If they differ, the exit code is 1, and the first step
    at which they do and what differs in the environment are printed.
    """
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.operations.reproducing.verdict import NotReproducedError, as_dict
    from mlflow_ft.progress import Progress

    if not (named or run_id):
        raise ConfigError("no run given", hint="mlflow-ft reproduce RUN_ID; the training printed the id")
    try:
        reproduction = pipeline.reproduce(
            named or run_id,
            plugins.load(),
            tolerance=tolerance,
            output_dir=Path(output_dir) if output_dir else None,
            progress=Progress(quiet=quiet),
        )
    except NotReproducedError as error:
        if as_json:
            click.echo(dumps(as_dict(error.reproduction), indent=2))
        raise
    if as_json:
        click.echo(dumps(as_dict(reproduction), indent=2))
