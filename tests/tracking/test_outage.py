"""A real server, killed or hung in mid-run."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import TrackingError, UndeliveredError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import check_server, deliver, open_run

STEPS = 60


@pytest.mark.slow
def test_points_logged_during_an_outage_all_arrive(
    server: Any, config: Config, plugins: Plugins, tmp_path: Path
) -> None:
    check_server()
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        started = time.monotonic()
        for step in range(STEPS):
            if step == 20:
                server.kill()
            if step == 40:
                back = threading.Thread(target=server.start)
                back.start()
            run.metrics({"loss": 1 / (step + 1), "nan": math.nan}, step=step)
            time.sleep(0.02)
        assert time.monotonic() - started < 15, "logging waited for the server"
        run.set_tags({"while": "away"})  # waits for the server
        back.join()

    client = MlflowClient(server.uri)
    points = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1 / (step + 1)) for step in range(STEPS)]
    assert len(client.get_metric_history(run.run_id, "nan")) == STEPS
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["while"] == "away"
    assert run.url == f"{server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_ends_in_an_outage_is_delivered_later(
    server: Any, config: Config, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_ft.tracking.run.PATIENCE_SECONDS", 1)
    folder = tmp_path / "outputs"
    opened = open_run(config.run, plugins=plugins)
    with pytest.raises(UndeliveredError, match="5 metrics") as error, opened as run:
        run.open_journal(folder)
        run.metric("loss", 0, step=0)
        assert run.flush(20)
        server.hang()
        for step in range(1, 6):
            run.metric("loss", step, step=step)

    assert f"they are kept in {folder}" in str(error.value)
    assert f"mlflow-ft sync {folder}" in str(error.value)
    with pytest.raises(TrackingError, match="no tracking server answers"):
        deliver(folder)
    server.go_on()
    client = MlflowClient(server.uri)
    assert client.get_run(run.run_id).info.status == "RUNNING"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the folder records where its run is

    assert deliver(folder) == 5
    assert deliver(folder) == 0
    assert [point.value for point in client.get_metric_history(run.run_id, "loss")] == [0, 1, 2, 3, 4, 5]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert json.loads((folder / "run.json").read_text())["pending_status"] is None


def test_delivering_twice_changes_nothing(server: Any, config: Config, plugins: Plugins, tmp_path: Path) -> None:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path)
        run.metrics({"loss": 0.5, "nan": math.nan}, step=1)
    (tmp_path / "journal.jsonl.sent").unlink()  # as after a crash between delivery and count

    assert deliver(tmp_path) == 2
    assert len(MlflowClient(server.uri).get_metric_history(run.run_id, "loss")) == 1
    assert len(MlflowClient(server.uri).get_metric_history(run.run_id, "nan")) == 1


def test_a_folder_that_is_not_a_runs_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="is not a run's folder"):
        deliver(tmp_path)
