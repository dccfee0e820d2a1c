"""The journal and the server have the same numbers, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.config.schema import Config
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import JOURNAL_FILE, ActiveRun, Store, curves, open_run

ODD = (0.1 + 0.2, 1e-300, math.nextafter(2.3, 3), 6.305813226944361, -0.0, 1e22)


@pytest.fixture
def run(client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path) -> Iterator[ActiveRun]:
    with open_run(config.run, plugins=plugins) as opened:
        opened.open_journal(tmp_path / "outputs")
        yield opened


def test_every_point_is_the_same_in_the_journal_and_on_the_server(run: ActiveRun, client: MlflowClient) -> None:
    for step, value in enumerate(ODD):
        run.metric("train/loss", value, step=step)
    run.metrics({"eval/tuned/exact match (%)": 0.5, "eval/nan": math.nan, "system/cpu": 1.0})
    assert run.flush(30)
    assert run.folder
    prefixes = ("train/", "eval/")
    kept = curves.journalled(run.folder / JOURNAL_FILE, prefixes=prefixes)
    stored = Store(client).curves(client.get_run(run.run_id), prefixes=prefixes)
    assert kept["train/loss"] == stored["train/loss"] == dict(enumerate(ODD))
    assert kept.keys() == stored.keys() == {"train/loss", "eval/tuned/exact match ___", "eval/nan"}
    assert math.isnan(kept["eval/nan"][0])
    assert math.isnan(stored["eval/nan"][0])


def test_a_line_that_a_crash_cut_short_is_skipped(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL_FILE
    assert curves.journalled(journal) == {}
    journal.write_text('{"key": "train/loss", "step": 1, "value": 2.5}\n{"key": "train/lo')
    assert curves.journalled(journal) == {"train/loss": {1: 2.5}}
