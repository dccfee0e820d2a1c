"""Recognise the format of rows and convert them; what does not fit is told with file and line, all at once."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Row

SAMPLE = 100
TURN_KEYS = ("role", "content")
"""What `data.columns` may rename inside the turns of a conversation, too."""


def recognise(rows: Sequence[Row], settings: DataSection, *, plugins: Plugins, registry: Registry) -> DataFormat:
    """The format that was named, or the one that a plugin detects in the first rows.

    Raises:
        DataError: no format fits, or several do; the message shows the columns found and those the formats need.
    """
    columns = list(dict.fromkeys(str(column) for row in rows for column in row.values))
    check_columns(columns, settings)
    if settings.format != "auto":
        return registry.formats[settings.format]
    sample = [renamed(row.values, settings) for row in rows]
    columns = list(dict.fromkeys(str(column) for values in sample for column in values))
    try:
        detected = plugins.hook.detect_format(columns=columns, sample=sample)
    except DataError as error:
        raise DataError(f"{rows[0].place}: {error.message}", hint=error.hint, problems=error.problems) from error
    if detected is not None:
        return registry.formats[detected]
    raise DataError(
        f"{rows[0].place}: the rows are of no known format; their columns are {', '.join(columns) or 'none'}",
        hint=_meant(columns, registry) or f"{_needs(registry)}; name one with data.format, or add one with a plugin",
    )


def _needs(registry: Registry) -> str:
    return "; ".join(f"{record.name} needs {', '.join(record.columns)}" for record in registry.formats)


def _meant(columns: Sequence[str], registry: Registry) -> str:
    """What to type where a format would fit, but for letters in the names of its columns."""
    for record in registry.formats:
        lacking = [name for name in record.columns if name not in columns]
        near = {name: difflib.get_close_matches(name, columns, n=1, cutoff=0.75) for name in lacking}
        if lacking and all(near.values()):
            pairs = [f"{name}={found[0]}" for name, found in near.items()]
            meant = ", ".join(f"`{name}` where it says `{found[0]}`" for name, found in near.items())
            return f"did you mean {meant} (format {record.name})? Mend the file, or --data.columns {','.join(pairs)}"
    return ""


def check_columns(columns: Sequence[str], settings: DataSection) -> None:
    """Raise DataError where `data.columns` or `data.split_by` names a column that no row has."""
    for wanted, own in (settings.columns or {}).items():
        if own in columns or wanted in TURN_KEYS:
            continue
        near = difflib.get_close_matches(own, columns, n=1)
        turned = f"; the other way round it is {own}={wanted}" if wanted in columns else ""
        raise DataError(
            f"data.columns: no row has a column {own!r}",
            hint=f"the columns are {', '.join(columns)}{f'; did you mean {near[0]}?' if near else turned}",
        )
    if settings.split_by and settings.split_by not in columns:
        raise DataError(
            f"data.split_by: no row has a column {settings.split_by!r}", hint=f"the columns are {', '.join(columns)}"
        )


def renamed(values: Mapping[str, Any], settings: DataSection) -> Mapping[str, Any]:
    """The row with the names that `data.columns` gives its columns, and the turns in them."""
    if not settings.columns:
        return values
    own = {column: wanted for wanted, column in settings.columns.items()}
    taken = set(own.values())
    found = {own.get(name, name): value for name, value in values.items() if name in own or name not in taken}
    inside = {column: wanted for column, wanted in own.items() if wanted in TURN_KEYS}
    return {name: _renamed_turns(value, inside) for name, value in found.items()} if inside else found


def _renamed_turns(value: Any, inside: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {inside.get(key, key): one for key, one in value.items()}
    return [_renamed_turns(one, inside) for one in value] if isinstance(value, list) else value


def convert(
    rows: Iterable[Row | Unreadable], record: DataFormat, settings: DataSection
) -> Iterator[tuple[Row, Example] | Unreadable]:
    """Convert every row; in place of one that is not of this format stands why."""
    for row in rows:
        if isinstance(row, Unreadable):
            yield row
            continue
        try:
            example = record.convert(renamed(row.values, settings))
        except ValueError as error:
            yield Unreadable(file=row.file, line=row.line, reason=str(error), converting=True)
        except RecursionError:
            yield Unreadable(file=row.file, line=row.line, reason="nested too deeply", converting=True)
        else:
            yield row, with_system(example, settings.system)


def with_system(example: Example, prompt: str | None) -> Example:
    """The example with `data.system` in front, where it has no system prompt."""
    if not prompt or not example.messages or example.messages[0]["role"] == "system":
        return example
    return dataclasses.replace(
        example,
        messages=({"role": "system", "content": prompt}, *example.messages),
        learned=None if example.learned is None else (False, *example.learned),
    )
