"""Recognise the format of rows and convert them; what does not fit is told with file and line, all at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.arrow_tables import TableRow
from mlflow_ft.data.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Row

SAMPLE = 100
TURN_KEYS = ("role", "content", "tool_calls", "train", "weight")
"""What `data.columns` may rename inside the turns of a conversation, too."""
_SHOWN_COLUMNS = 30
_TOO_DEEP = "nested too deeply"


def recognise(rows: Sequence[Row], settings: DataSection, *, plugins: Plugins, registry: Registry) -> DataFormat:
    """The format that was named, or the one that a plugin detects in the first rows.

    Raises:
        DataError: no format fits, or several do; the message shows the columns found and those the formats need.
        ConfigError: `data.format` names a format that no plugin has.
    """
    if settings.format != "auto":
        return registry.formats[settings.format]
    sample = [renamed(row.values, settings) for row in rows]
    columns = list(dict.fromkeys(str(column) for values in sample for column in values))
    try:
        detected = plugins.hook.detect_format(columns=columns, sample=sample)
    except DataError as error:
        told = "; ".join([*([error.hint] if error.hint else []), f"the columns are {_listed(columns)}"])
        raise DataError(f"{rows[0].place}: {error.message}", hint=told, problems=error.problems) from error
    except RecursionError as error:
        raise DataError(f"{rows[0].place}: the rows are {_TOO_DEEP}") from error
    if detected is not None:
        return registry.formats[detected]
    raise DataError(
        f"{rows[0].place}: the rows are of no known format; their columns are {_listed(columns)}",
        hint=_meant(sample, columns, registry) or _remedy(sample, registry),
    )


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _SHOWN_COLUMNS} more" if len(columns) > _SHOWN_COLUMNS else ""
    return (", ".join(columns[:_SHOWN_COLUMNS]) or "none") + more


def _meant(sample: Sequence[Mapping[str, Any]], columns: Sequence[str], registry: Registry) -> str:
    """What to type where a format would fit, but for letters in the names of its columns."""
    for record in registry.formats:
        lacking = [name for name in record.columns if name not in columns]
        near = {name: _near(name, columns, part=len(record.columns) > 1) for name in lacking}
        own = {column: name for name, column in near.items() if column}
        if not lacking or len(own) < len(lacking) or not any(_fits(record, _with_names(one, own)) for one in sample):
            continue
        meant = ", ".join(f"`{name}` where it says `{column}`" for column, name in own.items())
        given = ",".join(f"{name}={column}" for column, name in own.items())
        return f"did you mean {meant} (format {record.name})? Mend the file, or --data.columns {given}"
    return ""


def _fits(record: DataFormat, values: Mapping[str, Any]) -> bool:
    return _why_not(record, values) is None


def _near(name: str, columns: Sequence[str], *, part: bool) -> str | None:
    """The column whose name is nearly this one; with `part`, also one that begins with it (`chosen_response`)."""
    folded = {column.casefold(): column for column in reversed(columns)}
    found = difflib.get_close_matches(name, folded, n=1, cutoff=0.82)
    if not found and part:
        found = [column for column in folded if column.startswith((f"{name}_", f"{name}-", f"{name} "))]
    return folded[found[0]] if len(found) == 1 else None


def _remedy(sample: Sequence[Mapping[str, Any]], registry: Registry) -> str:
    """What to do about rows of no known format: formats that would read the first row, or why one does not."""
    first = sample[0] if sample else {}
    against = {record.name: _why_not(record, first) for record in registry.formats}
    reasons: dict[str, str] = {}
    for record in registry.formats:
        reason = against[record.name] or ""
        is_near = all(name in first for name in record.columns) or any(f"`{column}`" in reason for column in first)
        # a column that is missing says only that the rows are of another format
        if reason and is_near and not reason.startswith("column "):
            reasons.setdefault(reason, record.name)
    ways = [f"they are not {name}: {reason}" for reason, name in reasons.items()]
    if readable := [f"--data.format {name}" for name, reason in against.items() if reason is None]:
        ways.append(f"to read them all the same: {' or '.join(readable)}")
    needs = "; ".join(f"{record.name} needs {', '.join(record.columns)}" for record in registry.formats)
    ways += ["to say which columns are meant, for example: --data.columns prompt=COLUMN,completion=COLUMN", needs]
    return "\n  ".join(ways)


def _why_not(record: DataFormat, values: Mapping[str, Any]) -> str | None:
    """What a format has against a row; None where it takes it."""
    try:
        record.convert(values)
    except (ValueError, RecursionError) as error:
        return _reason(error)
    except Exception as error:  # a plugin's converter meets rows here that are not of its format
        return f"{type(error).__name__}: {error}"
    return None


def _reason(error: ValueError | RecursionError) -> str:
    return str(error) if isinstance(error, ValueError) else _TOO_DEEP


def check_columns(columns: Sequence[str], settings: DataSection) -> None:
    """Raise DataError where `data.columns` or `data.split_by` names a column that no row has."""
    for wanted, own in (settings.columns or {}).items():
        if own in columns or wanted in TURN_KEYS:
            continue
        near = difflib.get_close_matches(own, columns, n=1)
        turned = f"; the other way round it is {own}={wanted}" if wanted in columns else ""
        raise DataError(
            f"data.columns: no row has a column {own!r}",
            hint=f"the columns are {_listed(columns)}{f'; did you mean {near[0]}?' if near else turned}",
        )
    if settings.split_by and settings.split_by not in columns:
        near = difflib.get_close_matches(settings.split_by, columns, n=1)
        raise DataError(
            f"data.split_by: no row has a column {settings.split_by!r}",
            hint=f"the columns are {_listed(columns)}{f'; did you mean {near[0]}?' if near else ''}",
        )


def renamed(values: Mapping[str, Any], settings: DataSection) -> Mapping[str, Any]:
    """The row with the names that `data.columns` gives its columns, and the turns in them.

    What had such a name before is left out: `answer=solution` takes the place of a column `answer`.
    """
    if not settings.columns:
        return values
    own = {column: wanted for wanted, column in settings.columns.items()}
    found = _with_names(values, own)
    inside = {column: wanted for column, wanted in own.items() if wanted in TURN_KEYS}
    return {name: _renamed_turns(value, inside) for name, value in found.items()} if inside else found


def _with_names(values: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
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
        return _with_names(found, inside) if set(inside) & set(found) else value
    if isinstance(found, list) and any(isinstance(one, Mapping) and set(inside) & set(one) for one in found):
        return [_with_names(one, inside) if isinstance(one, Mapping) else one for one in found]
    return value


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
