"""Converts rows to examples by their format; rows that do not fit are reported together, with file and line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.reading.arrow_tables import TableRow
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.recognising.numbers import AsText, with_text
from mlflow_ft.records import DataFormat
from mlflow_ft.rows import Example, Row

TURN_KEYS = ("role", "content", "tool_calls", "train", "weight")
"""Keys that `data.columns` may also rename inside the turns of a conversation."""
TOO_DEEP = "nested too deeply"


def renamed(values: Mapping[str, Any], settings: DataSection) -> Mapping[str, Any]:
    """The row with the names that `data.columns` gives its columns, and the keys of their turns.

    A column that had such a name before is left out: `answer=solution` replaces a column `answer`.
    """
    if not settings.columns:
        return values
    own = {column: wanted for wanted, column in settings.columns.items()}
    row = with_names(values, own)
    inside = {column: wanted for column, wanted in own.items() if wanted in TURN_KEYS}
    return {name: _renamed_turns(value, inside) for name, value in row.items()} if inside else row


def with_names(values: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    taken = {wanted for column, wanted in own.items() if column in values}
    return {own.get(name, name): value for name, value in values.items() if name in own or name not in taken}


def _renamed_turns(value: Any, inside: Mapping[str, str]) -> Any:
    """A turn or a list of turns with other keys, also where a CSV file stores it as JSON; anything else as it is."""
    turns = value
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            turns = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(turns, Mapping):
        return with_names(turns, inside) if set(inside) & set(turns) else value
    if isinstance(turns, list) and any(isinstance(turn, Mapping) and set(inside) & set(turn) for turn in turns):
        return [with_names(turn, inside) if isinstance(turn, Mapping) else turn for turn in turns]
    return value


def why_not(record: DataFormat, values: Mapping[str, Any]) -> str | None:
    """Why a format does not read a row; None where it does."""
    try:
        record.convert(values)
    except (ValueError, RecursionError) as error:
        return _reason(error)
    except Exception as error:  # a plugin's converter is given rows here that do not have its format
        raised = error.__cause__ or error  # at the door of a plugin it became an error that names the plugin
        return f"{type(raised).__name__}: {raised}"
    return None


def _reason(error: ValueError | RecursionError) -> str:
    return str(error) if isinstance(error, ValueError) else TOO_DEEP


def convert(
    rows: Iterable[Row | Unreadable], record: DataFormat, settings: DataSection, *, as_text: Sequence[AsText] = ()
) -> Iterator[tuple[Row, Example] | Unreadable]:
    """Convert every row; a row that does not have this format becomes an `Unreadable` with the reason.

    `as_text` are the columns whose numbers are used as text.
    """
    for row in rows:
        if isinstance(row, Unreadable):
            yield row
            continue
        try:
            example = record.convert(with_text(renamed(row.values, settings), as_text))
        except (ValueError, RecursionError) as error:
            yield Unreadable(file=row.file, line=row.line, reason=_reason(error), converting=True)
        else:
            yield row, with_system(_with_nulls(example, row, settings), settings.system)


def _with_nulls(example: Example, row: Row, settings: DataSection) -> Example:
    """The example with the columns for reward functions as the table has them: every object with every key."""
    values = row.values
    if not example.columns or not isinstance(values, TableRow):
        return example
    own = settings.columns or {}
    return dataclasses.replace(
        example, columns={name: values.as_stored(own.get(name, name)) for name in example.columns}
    )


def with_system(example: Example, prompt: str | None) -> Example:
    """The example with `data.system` as its first turn, where it has no system prompt."""
    if not prompt or not example.messages or example.messages[0]["role"] == "system":
        return example
    return dataclasses.replace(
        example,
        messages=({"role": "system", "content": prompt}, *example.messages),
        learned=None if example.learned is None else (False, *example.learned),
    )
