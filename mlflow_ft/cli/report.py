"""mlflow-ft report RUN_ID: the page about a run, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_ft.errors import ConfigError


@click.command()
@click.argument("named", metavar="RUN_ID", default="")
@click.option("--run_id", default="", help="The same as RUN_ID.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write [RUN_ID.html].")
@click.option("--log", is_flag=True, help="Also put it among the run's artifacts, as report.html.")
def command(*, named: str, run_id: str, out: Path | None, log: bool) -> None:
    """Write the report of a run: one HTML page that needs no server and no script.

    \b
    mlflow-ft report 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c
    mlflow-ft report 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c --out report.html

    Whether training helped, all scores with intervals, the loss curves, answers of both models side by side, what the
    data checks found, and how far each form is from the trained model. Runs have it as report.html; this command writes
    it for older runs.
    """
    from mlflow_ft import plugins, tracking
    from mlflow_ft.forms import report
    from mlflow_ft.registry import Registry

    asked = named or run_id
    if not asked:
        raise ConfigError("no run given", hint="mlflow-ft report RUN_ID; `mlflow-ft runs` lists the runs")
    store = tracking.Store.connect()
    facts = report.gathered(store, asked, lower_is_better=Registry(plugins.load()).lower_is_better)
    page = report.as_page(facts)
    file = out or Path(f"{asked}.html")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    if log:
        store.write_text([asked], page, report.FILE)
    click.echo(str(file))
