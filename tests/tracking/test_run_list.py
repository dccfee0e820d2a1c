"""The view "Scores" of an experiment's runs, in the form in which MLflow's UI keeps saved views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.tracking import run_list


def columns(value: str) -> list[str]:
    state: dict[str, Any] = json.loads(json.loads(value)["state"])
    return list(state["selectedColumns"])


def test_a_run_adds_its_scores_once(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("one", artifact_location=str(tmp_path))

    def kept() -> str:
        return str(client.get_experiment(experiment).tags[run_list.TAG])

    run_list.add(client, experiment, ["eval/base/loss", "eval/tuned/loss"])
    view = json.loads(first := kept())
    assert view["name"] == "Scores"
    assert type(view["createdAt"]) is int  # the UI ignores a view without these three
    assert columns(first) == [
        "params.`cfg.method`",
        "metrics.`eval/base/loss`",
        "metrics.`eval/tuned/loss`",
        "params.`cfg.data.path`",
        "attributes.`Models`",
    ]
    run_list.add(client, experiment, ["eval/tuned/loss"])
    assert kept() == first
    run_list.add(client, experiment, ["eval/tuned/loss", "eval/tuned/rouge"])
    assert columns(kept())[3:5] == ["metrics.`eval/tuned/rouge`", "params.`cfg.data.path`"]
    assert json.loads(kept())["createdAt"] == view["createdAt"]


def test_what_users_changed_stays() -> None:
    state = {"selectedColumns": ["tags.`team`", "params.`cfg.data.path`"], "searchFilter": "x", "orderByAsc": True}
    theirs = json.dumps({"name": "Mine", "createdAt": 1, "updatedAt": 2, "state": json.dumps(state)})
    value = run_list.with_columns(theirs, ["loss"], moment=3)
    assert columns(value) == ["tags.`team`", "metrics.`loss`", "params.`cfg.data.path`"]
    assert json.loads(json.loads(value)["state"]) | {"selectedColumns": []} == state | {"selectedColumns": []}
    assert json.loads(value)["name"] == "Mine"


@pytest.mark.parametrize(
    "theirs",
    ["deflate;eJw", "[]", "3", '{"name": "x"}', '{"state": "deflate;eJw"}', '{"state": "[]"}', '{"state": 3}'],
)
def test_a_view_that_cannot_be_read_stays(theirs: str) -> None:
    assert run_list.with_columns(theirs, ["loss"], moment=3) == theirs


def test_many_scores_leave_the_view_readable(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("one", artifact_location=str(tmp_path))
    names = [f"eval/tuned/guard-{number}/exact_match" for number in range(100)]
    for turn in range(3):
        run_list.add(client, experiment, ["with`tick", *names[turn * 10 :]])
    kept = columns(client.get_experiment(experiment).tags[run_list.TAG])
    assert [column for column in kept if column.startswith("metrics")] == [f"metrics.`{one}`" for one in names[:20]]
    long = ["eval/tuned/" + "x" * 230 + str(number) for number in range(20)]
    other = client.create_experiment("two", artifact_location=str(tmp_path))
    run_list.add(client, other, long)  # over 5,000 characters: MLflow would cut it, and the UI could not read it
    assert run_list.TAG not in client.get_experiment(other).tags
