"""The view "Scores" of an experiment in MLflow's UI (Training runs > Views): methods and scores of its runs as columns.

MLflow keeps such a view as a tag of the experiment, as its UI writes it: `{"name", "createdAt", "updatedAt", "state"}`,
in which `state` is JSON. Versions of MLflow without saved views ignore it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow import MlflowClient

from mlflow_ft.tracking.server import told

TAG = "mlflow.sharedViewState.mlflow-ft-scores"
NAME = "Scores"
FIRST = ("params.`cfg.method`",)
LAST = ("params.`cfg.data.path`", "attributes.`Models`")
MOST = 20
"""Columns of scores. MLflow cuts the tag of an experiment after 5,000 characters."""
LONGEST = 5000


def add(client: MlflowClient, experiment_id: str, metrics: Sequence[str]) -> None:
    """Make the view if the experiment has none, or add columns for metrics that it does not show.

    A view that users have changed in the UI keeps their columns; one that this cannot read stays as it is.

    Raises:
        TrackingError: the server does not answer.
    """
    with told("read the experiment's view of its scores"):
        kept = client.get_experiment(experiment_id).tags.get(TAG, "")
    value = with_columns(kept, [name for name in metrics if "`" not in name], moment=int(time.time() * 1000))
    if value != kept and len(value) <= LONGEST:
        with told("write the experiment's view of its scores"):
            client.set_experiment_tag(experiment_id, TAG, value)


def with_columns(kept: str, metrics: Sequence[str], *, moment: int) -> str:
    """The tag's value with columns for these metrics; `kept` if it has them, or is none of ours.

    Args:
        kept: The value so far; empty if there is none.
        metrics: Names of metrics, the most important first.
        moment: Milliseconds since 1970.
    """
    try:
        view: dict[str, Any] = json.loads(kept) if kept else {"name": NAME, "createdAt": moment, "state": "{}"}
        state: dict[str, Any] = json.loads(view["state"])
        before = list(state.get("selectedColumns", (*FIRST, *LAST)))
    except (ValueError, TypeError, KeyError, AttributeError):
        return kept
    new = list(_new(before, metrics))
    if kept and not new:
        return kept
    place = next((at for at, column in enumerate(before) if column in LAST), len(before))
    state |= {"orderByKey": "attributes.start_time", "orderByAsc": False} if not kept else {}
    state["selectedColumns"] = [*before[:place], *new, *before[place:]]
    return json.dumps({**view, "updatedAt": moment, "state": json.dumps(state)})


def _new(before: Sequence[str], metrics: Sequence[str]) -> Iterator[str]:
    room = MOST - sum(column.startswith("metrics.") for column in before)
    missing = [column for name in metrics if (column := f"metrics.`{name}`") not in before]
    yield from missing[: max(room, 0)]
