"""Rows of Arrow tables, interpreted by their schema and by what `datasets` wrote into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.reading.arrow_values import column

if TYPE_CHECKING:
    import pyarrow

FEATURES = b"huggingface"
"""Where a schema holds what `datasets` says about its columns."""


class Table:
    """How to read the rows of one schema."""

    def __init__(self, schema: pyarrow.Schema) -> None:
        self.fields = list(schema)
        self._features = _features(schema)
        self.classes: dict[str, list[str]] = {}
        """For columns of class numbers, the class names; the rows keep the numbers."""
        for name, feature in self._features.items():
            if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
                self.classes[name] = [str(class_name) for class_name in feature.get("names") or ()]

    def rows(self, batch: pyarrow.RecordBatch) -> list[TableRow]:
        """The rows of a batch.

        Raises:
            ValueError, ArithmeticError: a value is damaged, or outside Python's range.
        """
        rows = [TableRow(self) for _ in range(batch.num_rows)]
        for index, field in enumerate(self.fields):
            feature = None if field.name in self.classes else self._features.get(field.name)
            for row, value in zip(rows, column(batch.column(index), field, feature), strict=True):
                row[field.name] = value
        return rows


class TableRow(dict[str, Any]):
    """A row of a table, without the nulls that Arrow added to its objects."""

    __slots__ = ("table",)

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def as_stored(self, name: str) -> Any:
        """The value of a column with every null of the table."""
        kinds = {field.name: field.type for field in self.table.fields}
        return _filled(self.get(name), kinds[name]) if name in kinds else self.get(name)


def _filled(value: Any, kind: pyarrow.DataType) -> Any:
    import pyarrow.types as t

    if isinstance(value, dict) and t.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return {field.name: _filled(value.get(field.name), field.type) for field in fields}
    if isinstance(value, list) and t.is_nested(kind) and hasattr(kind, "value_field"):
        return [_filled(element, kind.value_type) for element in value]
    return value


def _features(schema: pyarrow.Schema) -> Mapping[str, Any]:
    """What `datasets` wrote into a schema about its columns; {} where it wrote nothing."""
    try:
        written = json.loads((schema.metadata or {}).get(FEATURES, b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return written if isinstance(written, Mapping) else {}
