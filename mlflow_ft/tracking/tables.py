"""Tables for MLflow's UI: one JSON file, written once, and a tag that lists it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

LONGEST = 7500
"""Characters of the tag; MLflow cuts tags at 8,000, and a list cut short cannot be parsed."""


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns and data as `mlflow.log_table` writes them: the columns of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = [[_cell(row.get(name)) for name in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False, default=str)


def table_tag(known: Mapping[str, str], path: str) -> dict[str, str]:
    """The tag by which the UI finds tables, with this one added; if there are too many, the oldest are left out."""
    listed = json.loads(known.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    entries = listed if entry in listed else [*listed, entry]
    while len(entries) > 1 and len(json.dumps(entries)) > LONGEST:
        entries = entries[1:]
    return {MLFLOW_LOGGED_ARTIFACTS: json.dumps(entries)}


def _cell(value: Any) -> Any:
    # a browser's JSON.parse accepts neither NaN nor Infinity
    return None if isinstance(value, float) and not math.isfinite(value) else value
