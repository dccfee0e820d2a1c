"""mlflow-ft report RUN_ID: the page about a run, or about several, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mlflow_ft.errors import ConfigError

COMPARISON = Path("comparison.html")


@click.command()
@click.argument("named", metavar="RUN_ID...", nargs=-1)
@click.option("--run_id", default="", help="The same as RUN_ID; several are separated by commas.")
@click.option("--out", type=click.Path(path_type=Path), help=f"The file to write [RUN_ID.html or {COMPARISON}].")
@click.option("--log", is_flag=True, help="Also put it among the run's artifacts, as report.html.")
def command(*, named: Sequence[str], run_id: str, out: Path | None, log: bool) -> None:
    """Write the report of a run, or of several side by side: one HTML page that needs no server and no script.

    \b
    mlflow-ft report 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c
    mlflow-ft report 3f9c6d2a8b1e4c70a5d6e7f8091a2b3c 7be1d09c5a2f4e6380c4d1e2f3a4b5c6 --out compared.html

    One run: whether training helped, all scores with intervals, the loss curves, answers of both models side by side,
    what the data checks found, and how far each form is from the trained model. Runs have it as report.html; this
    command writes it for older runs.

    Several: which run is the best and whether that is shown by a paired test, what differed in settings, data, code
    and libraries, all scores with their differences from the first run, the curves over each other, on how many rows
    each run is the best, and their answers side by side.
    """
    from mlflow_ft import plugins, tracking
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.forms import report
    from mlflow_ft.registry import Registry

    asked = _asked([*named, *filter(None, run_id.split(","))], limit=len(report.LETTERS))
    if log and len(asked) > 1:
        raise ConfigError("--log goes with one run", hint="leave it out: a comparison belongs to none of its runs")
    store = tracking.Store.connect()
    lower = Registry(plugins.load()).lower_is_better
    facts = [report.gathered(store, one, lower_is_better=lower) for one in asked]
    page = report.as_page(facts[0]) if len(facts) == 1 else report.comparison(facts, Gates().knowing(lower))
    file = out or (Path(f"{asked[0]}.html") if len(asked) == 1 else COMPARISON)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    if log:
        store.write_text(asked, page, report.FILE)
    click.echo(str(file))


def _asked(named: Sequence[str], *, limit: int) -> list[str]:
    """The runs that were named, each once."""
    asked = [name.strip() for name in named]
    if not asked:
        raise ConfigError("no run given", hint="mlflow-ft report RUN_ID; `mlflow-ft runs` lists the runs")
    if twice := sorted({name for name in asked if asked.count(name) > 1}):
        raise ConfigError(f"run {twice[0]} is given twice", hint="name each run once")
    if len(asked) > limit:
        raise ConfigError(
            f"{len(asked)} runs are too many for one page", hint=f"name up to {limit}; `mlflow-ft runs` lists all"
        )
    return asked
