"""Tables are valid JSON whatever is in them, and the tag that lists them stays one that can be read."""

from __future__ import annotations

import json

from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from mlflow_ft.tracking import tables


def test_columns_of_all_rows_in_the_order_they_come_up() -> None:
    table = json.loads(tables.table_json([{"a": 1, "b": float("nan")}, {"c": "é", "a": None}]))
    assert table == {"columns": ["a", "b", "c"], "data": [[1, None, None], [None, None, "é"]]}


def test_a_table_is_listed_once() -> None:
    once = tables.table_tag({}, "a.json")
    assert tables.table_tag(once, "a.json") == once
    listed = json.loads(tables.table_tag(once, "b.json")[MLFLOW_LOGGED_ARTIFACTS])
    assert listed == [{"path": "a.json", "type": "table"}, {"path": "b.json", "type": "table"}]


def test_the_newest_of_very_many_tables_are_listed() -> None:
    tag: dict[str, str] = {}
    for step in range(400):
        tag = tables.table_tag(tag, f"samples/step_{step:06}.json")
    listed = json.loads(tag[MLFLOW_LOGGED_ARTIFACTS])
    assert len(tag[MLFLOW_LOGGED_ARTIFACTS]) <= tables.LONGEST
    assert len(listed) > 100
    assert listed[-1]["path"] == "samples/step_000399.json"
