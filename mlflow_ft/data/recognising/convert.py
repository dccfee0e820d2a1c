"""Rows as something to learn from, by their format; what does not fit is told with file and line, all at once."""

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
"""What `data.columns` may rename inside the turns of a conversation, too."""
TOO_DEEP = "nested too deeply"


def renamed(values: Mapping[str, Any], settings: DataSection) -> Mapping[str, Any]:
    """The row with the names that `data.columns` gives its columns, and the turns in them.

    What had such a name before is left out: `answer=solution` takes the place of a column `answer`.
    """
    if not settings.columns:
        return values
    own = {column: wanted for wanted, column in settings.columns.items()}
    found = with_names(values, own)
    inside = {column: wanted for column, wanted in own.items() if wanted in TURN_KEYS}
    return {name: _renamed_turns(value, inside) for name, value in found.items()} if inside else found


def with_names(values: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    taken = {wanted for column, wanted in own.items() if column in values}
    return {own.get(name, name): value for name, value in values.items() if name in own or name not in taken}


def _renamed_turns(value: Any, inside: Mapping[str, str]) -> Any:
    """A turn or a list of them with other keys, also where a CSV file keeps it as JSON; anything else as it is."""
    found = value
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(found, Mapping):
        return with_names(found, inside) if set(inside) & set(found) else value
    if isinstance(found, list) and any(isinstance(one, Mapping) and set(inside) & set(one) for one in found):
        return [with_names(one, inside) if isinstance(one, Mapping) else one for one in found]
    return value


def why_not(record: DataFormat, values: Mapping[str, Any]) -> str | None:
    """What a format has against a row; None where it takes it."""
    try:
        record.convert(values)
    except (ValueError, RecursionError) as error:
        return _reason(error)
    except Exception as error:  # a plugin's converter meets rows here that are not of its format
        return f"{type(error).__name__}: {error}"
    return None


def _reason(error: ValueError | RecursionError) -> str:
    return str(error) if isinstance(error, ValueError) else TOO_DEEP


def convert(
    rows: Iterable[Row | Unreadable], record: DataFormat, settings: DataSection, *, as_text: Sequence[AsText] = ()
) -> Iterator[tuple[Row, Example] | Unreadable]:
    """Convert every row; in place of one that is not of this format stands why.

    `as_text` are the columns whose numbers are taken as text.
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
    """The example with the columns that go to reward functions as the table has them: every object with every key."""
    values = row.values
    if not example.columns or not isinstance(values, TableRow):
        return example
    own = settings.columns or {}
    return dataclasses.replace(
        example, columns={name: values.as_stored(own.get(name, name)) for name in example.columns}
    )


def with_system(example: Example, prompt: str | None) -> Example:
    """The example with `data.system` in front, where it has no system prompt."""
    if not prompt or not example.messages or example.messages[0]["role"] == "system":
        return example
    return dataclasses.replace(
        example,
        messages=({"role": "system", "content": prompt}, *example.messages),
        learned=None if example.learned is None else (False, *example.learned),
    )
