"""Hints for rows of no known format: every remedy that a hint names was tried on the first rows of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import split_names
from mlflow_ft.data.reading import readers
from mlflow_ft.data.reading.shapes import Fits, Shape, find, where
from mlflow_ft.data.recognising import commands, converters
from mlflow_ft.data.recognising.convert import renamed, why_not, with_names
from mlflow_ft.errors import DataError
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry

if TYPE_CHECKING:
    from mlflow_ft.data.sources import Source

_SHOWN_COLUMNS = 30
SPEAKERS = (("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("inputs", "targets"))
"""Columns that are named after the speaker."""


def better(error: DataError, source: Source, roots: Sequence[Any], fitting: Sequence[Shape], fits: Fits) -> DataError:
    """The error with a hint for this file; unchanged where nothing that was tried helps."""
    ways = converters.ways(source, roots, fits) or list(_places(source, roots, fitting, fits))
    return DataError(error.message, hint="\n  ".join(ways), problems=error.problems) if ways else error


def _places(source: Source, roots: Sequence[Any], fitting: Sequence[Shape], fits: Fits) -> Iterator[str]:
    """Where there may be rows that were not read, since several places are possible, and how to extract them."""
    fitting = fitting or [shape for shape in find(roots, fits, is_whole=False, weak=True) if len(shape.steps) < 3]
    if not fitting:
        return
    first = fitting[0]
    yield "there may be rows under " + "; under ".join(where(shape.steps) for shape in fitting[:8])
    yield f"write the rows you want to a separate file and name that; for those under {where(first.steps)}:"
    path = source.files[0].path
    of_object = len(roots) == 1 and path is not None and readers.first_letter(path) == "{"
    expression = converters.of_steps(first.steps, column=first.column, rows=not of_object)
    yield commands.writing(source, expression, of_object=of_object)


def of_split(fitting: Sequence[Shape], split: str) -> list[Shape]:
    """Of several places for rows, the one that is named after the requested split."""
    named = [shape for shape in fitting if _split_of(shape.steps) == _split_of([split])]
    return named if len(fitting) > 1 and len(named) == 1 else list(fitting)


def _split_of(words: Sequence[str]) -> str | None:
    lowered = {word.lower() for word in words}
    return next((name for name, known in split_names.WORDS.items() if lowered & set(known)), None)


def of_rows(sample: Sequence[Mapping[str, Any]], columns: Sequence[str], registry: Registry) -> str:
    """A hint for rows of no known format."""
    return _misspelt(sample, columns, registry) or _remedy(sample, columns, registry)


def listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _SHOWN_COLUMNS} more" if len(columns) > _SHOWN_COLUMNS else ""
    return (", ".join(columns[:_SHOWN_COLUMNS]) or "none") + more


def _misspelt(sample: Sequence[Mapping[str, Any]], columns: Sequence[str], registry: Registry) -> str:
    """What to type where a format would fit but for misspelt column names."""
    for record in registry.formats:
        lacking = [name for name in record.columns if name not in columns]
        near = {name: _near(name, columns, part=len(record.columns) > 1) for name in lacking}
        own = {column: name for name, column in near.items() if column}
        if not lacking or len(own) < len(lacking) or not any(_fits(record, with_names(row, own)) for row in sample):
            continue
        names = ", ".join(f"`{name}` where it says `{column}`" for column, name in own.items())
        setting = ",".join(f"{name}={column}" for column, name in own.items())
        return f"did you mean {names} (format {record.name})? Fix the file, or add --data.columns {setting}"
    return ""


def _fits(record: DataFormat, values: Mapping[str, Any]) -> bool:
    return why_not(record, values) is None


def _near(name: str, columns: Sequence[str], *, part: bool) -> str | None:
    """The column whose name is close to this one; with `part`, also one that begins with it (`chosen_response`)."""
    folded = {column.casefold(): column for column in reversed(columns)}
    matches = difflib.get_close_matches(name, folded, n=1, cutoff=0.82)
    if not matches and part:
        matches = [column for column in folded if column.startswith((f"{name}_", f"{name}-", f"{name} "))]
    return folded[matches[0]] if len(matches) == 1 else None


def _remedy(sample: Sequence[Mapping[str, Any]], columns: Sequence[str], registry: Registry) -> str:
    """A hint for rows of no known format: formats that would read the first row, or why one does not."""
    first = sample[0] if sample else {}
    against = {record.name: why_not(record, first) for record in registry.formats}
    reasons: dict[str, str] = {}
    for record in registry.formats:
        reason = against[record.name] or ""
        is_near = all(name in first for name in record.columns) or any(f"`{column}`" in reason for column in first)
        # a missing column only says that the rows have another format
        if reason and is_near and not reason.startswith("column "):
            reasons.setdefault(reason, record.name)
    ways = [f"they are not {name}: {reason}" for reason, name in reasons.items()]
    if readable := [f"--data.format {name}" for name, reason in against.items() if reason is None]:
        ways.append(f"to read them anyway: {' or '.join(readable)}")
    setting = next(_named_columns(first, columns, registry), "")
    example = "to name the columns, for example: --data.columns prompt=COLUMN,completion=COLUMN"
    needs = "; ".join(f"{record.name} needs {', '.join(record.columns)}" for record in registry.formats)
    ways += [f"if these are the right columns: {setting}" if setting else example, needs]
    return "\n  ".join(ways)


def _named_columns(first: Mapping[str, Any], columns: Sequence[str], registry: Registry) -> Iterator[str]:
    """Values of `data.columns` that read the first row, where there is one list of turns or two texts."""
    lists = [column for column in columns if isinstance(first.get(column), list)]
    for keys in _turn_keys(first.get(lists[0])) if len(lists) == 1 else ():
        yield from _tried({"messages": lists[0], **keys}, first, registry)
    texts = [column for column in columns if isinstance(first.get(column), str) and first[column]]
    for prompt, completion in (*SPEAKERS, *([texts] if len(texts) == len(columns) == 2 else [])):
        if {prompt, completion} <= set(texts):
            yield from _tried({"prompt": prompt, "completion": completion}, first, registry)


def _tried(names: Mapping[str, str], first: Mapping[str, Any], registry: Registry) -> Iterator[str]:
    columns = {name: column for name, column in names.items() if name != column}
    plain = all(column.isprintable() and not set(column) & set(" ,=\"'{}[]") for column in columns.values())
    row = renamed(first, DataSection(columns=columns)) if columns and plain else None
    format_name = "messages" if "messages" in names else "prompt-completion"
    if row is not None and any(record.name == format_name and _fits(record, row) for record in registry.formats):
        yield "--data.columns " + ",".join(f"{name}={column}" for name, column in columns.items())


def _turn_keys(value: Any) -> Iterator[dict[str, str]]:
    """Pairs of keys that may hold the speaker and the text of the objects in a list, keys with the most text first."""
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return
    texts = [str(key) for key, inner in value[0].items() if isinstance(inner, str)]
    contents = sorted(
        texts[:8], key=lambda key: -sum(len(str(turn.get(key))) for turn in value if isinstance(turn, Mapping))
    )
    for role in texts[:8]:
        yield from ({"role": role, "content": content} for content in contents if content != role)
