"""Recognise the format of rows and convert them; what does not fit is told with file and line, all at once."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_ft.errors import DataError, Problem
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import DataFormat, Example, Row
from mlflow_ft.registry import Registry

SAMPLE = 100


def recognise(rows: Sequence[Row], *, name: str, plugins: Plugins, registry: Registry) -> DataFormat:
    """The format that was named, or the first that a plugin detects.

    Raises:
        DataError: no format fits; the message shows the columns found and those the formats need.
    """
    if name != "auto":
        return registry.formats[name]
    sample = [row.values for row in rows[:SAMPLE]]
    columns = list(dict.fromkeys(str(column) for values in sample for column in values))
    detected = plugins.hook.detect_format(columns=columns, sample=sample)
    if detected is not None:
        return registry.formats[detected]
    needs = "; ".join(f"{record.name} needs {', '.join(record.columns)}" for record in registry.formats)
    raise DataError(
        f"{rows[0].place}: the rows are of no known format; their columns are {', '.join(columns) or 'none'}",
        hint=f"{needs}; name one with data.format, or add one with a plugin",
    )


def convert(rows: Sequence[Row], record: DataFormat) -> list[Example]:
    """Convert every row.

    Raises:
        DataError: some rows are not of this format; the message counts them and shows the first.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            examples.append(record.convert(row.values))
        except ValueError as error:
            problems.append(Problem(place=row.place, message=str(error)))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(rows)} rows are not of the format {record.name}",
            problems=problems,
            hint="mend or remove these rows, or name another format with data.format",
        )
    return examples
