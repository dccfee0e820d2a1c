"""mlflow-ft resume RUN_ID: continue a run that was killed, stopped or failed."""

from __future__ import annotations

from json import dumps

import click

from mlflow_ft.cli.pairs import PairsCommand
from mlflow_ft.errors import ConfigError

SWITCHES = {
    "accept-changes": "Continue although data, code, plugins, libraries or settings changed; the run records it.",
    "json": "Print the outcome as JSON on stdout.",
    "quiet": "Print errors only.",
}
OPTIONS = {"run_id RUN_ID": "The same as RUN_ID."}


@click.command(cls=PairsCommand, options_metavar="RUN_ID [--KEY VALUE]...", switches=SWITCHES, options=OPTIONS)
def command(arguments: tuple[str, ...], *, run_id: str | None, accept_changes: bool, json: bool, quiet: bool) -> None:
    """Continue a run that was killed, stopped or failed, in the same MLflow run.

    \b
    mlflow-ft resume 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c
    mlflow-ft resume 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c --data /new/place/rows.jsonl

    Training continues from the last complete checkpoint, in the run's folder or in the tracking store, and ends with
    the same weights as without the interruption. Complete stages are not repeated. What changed since is listed and
    refused; a data set or a model may have moved, if its content is the same.
    """
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.cli import chain, sweep, sweeps
    from mlflow_ft.cli.train import as_dict, report
    from mlflow_ft.config import pairs
    from mlflow_ft.progress import Progress
    from mlflow_ft.stages.preflight import reporting_to_run

    first = [] if not arguments or arguments[0].startswith("--") else [arguments[0]]
    named = run_id or (first[0] if first else "")
    if not named:
        raise ConfigError("no run given", hint="mlflow-ft resume RUN_ID; `mlflow-ft runs` lists the runs")
    settings = pairs(arguments[len(first) :])
    if any(setting.key == "config" for setting in settings):
        raise ConfigError("--config: the run has recorded its configuration", hint="name single settings: --KEY VALUE")
    progress = Progress(quiet=quiet)
    with reporting_to_run():
        name, is_sweep = chain.of_run(named), sweeps.of_run(named)
    if name is not None:
        rest = arguments[len(first) :]
        chain.finish(name, rest, resume=named, accept_changes=accept_changes, progress=progress, json=json)
        return
    if is_sweep:
        rest = arguments[len(first) :]
        sweep.show(sweeps.resume(named, rest, accept_changes=accept_changes, progress=progress), progress, json=json)
        return
    outcome = pipeline.resume(
        named,
        plugins.load(),
        settings=settings,
        accept_changes=accept_changes,
        progress=progress,
    )
    if json:
        click.echo(dumps(as_dict(outcome), indent=2))
    else:
        report(outcome, progress)
