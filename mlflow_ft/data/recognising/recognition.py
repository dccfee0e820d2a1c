"""Recognises a source by its first rows: where its rows are, which format they have, which numbers become text."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.reading import json_list, readers, shapes
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.recognising import hints, numbers
from mlflow_ft.data.recognising.convert import TOO_DEEP, TURN_KEYS, renamed, why_not
from mlflow_ft.data.recognising.numbers import AsText
from mlflow_ft.data.sources import Source
from mlflow_ft.errors import DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row

SAMPLE = 100
OUTLINED = 1000
"""Elements to look at in each list of a file that is one object, and too large for a row."""
Values = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Understood:
    """A source, and how to read it."""

    source: Source
    record: DataFormat
    as_text: tuple[AsText, ...] = ()
    columns: tuple[str, ...] = ()
    """The columns of its first rows."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """How the source was interpreted where it does not say so itself, a sentence each."""
        shape = self.source.shape
        described = [shape.description] if shape else []
        return (*filter(None, (self.source.remark, *described)), *map(str, self.as_text))


@dataclass(frozen=True, kw_only=True)
class Recogniser:
    """Recognises rows by the formats of these plugins, or by the one that is named."""

    settings: DataSection
    plugins: Plugins
    registry: Registry

    def understand(self, source: Source) -> Understood:
        """Recognise the rows of a source, wherever they are in its files.

        Raises:
            DataError: it has no rows, or they have no known format; the message says what would help.
            ConfigError: `data.format` names a format that no plugin has.
        """
        read, broken = _begin(source)
        rows = [row for row in read if isinstance(row, Row)]
        if rows and broken:
            raise broken
        if rows and (understood := self._of_rows(source, rows)):
            return understood
        roots = _roots(source, read)
        fitting = hints.of_split(shapes.find(roots, self.fits, is_whole=_is_whole(roots)), self.settings.split)
        if len(fitting) == 1:
            shaped = replace(source, shape=fitting[0])
            inner = [row for row in _begin(shaped)[0] if isinstance(row, Row)]
            if inner and (understood := self._of_rows(shaped, inner)):
                return understood
        if broken:
            raise broken
        try:
            return self._unshaped(source, rows or [_first(source)])
        except DataError as error:
            raise hints.better(error, source, roots, fitting, self.fits) from error

    def _unshaped(self, source: Source, rows: Sequence[Row]) -> Understood:
        """The rows as they are, in the format that the settings name: what is wrong is reported row by row."""
        if self.settings.format != "auto":
            return self._understood(source, rows, self.registry.formats[self.settings.format], ())
        if understood := self._of_rows(source, rows):
            return understood
        raise self._unrecognised(rows)

    def check_names(self, opened: Sequence[Source]) -> None:
        """Raise DataError where the settings name a column that no row of these sources has."""
        rows = [row for source in opened for row in _begin(source)[0] if isinstance(row, Row)]
        if rows:
            check_columns(list(dict.fromkeys(str(column) for row in rows for column in row.values)), self.settings)

    def recognise(self, rows: Sequence[Row]) -> DataFormat:
        """The format that was named, or the one that a plugin detects in the first rows.

        Raises:
            DataError: no format fits, or several do; the message shows the columns and those that the formats need.
        """
        record = self._detected(rows, self._renamed(rows))
        if record is None:
            raise self._unrecognised(rows)
        return record

    def fits(self, values: Values) -> DataFormat | None:
        """The format that reads some of these rows; None where there is none."""
        renamed_values = [renamed(row, self.settings) for row in values]
        try:
            record, as_text = self._read(renamed_values, {})
        except Exception:  # a plugin is given values here that may not be rows
            return None
        return record if record and _count(numbers.applied(renamed_values, as_text), record) else None

    def _of_rows(self, source: Source, rows: Sequence[Row]) -> Understood | None:
        values = self._renamed(rows)
        own = {column: wanted for wanted, column in (self.settings.columns or {}).items()}
        try:
            record, as_text = self._read(values, numbers.class_names(rows[0], own))
        except (DataError, RecursionError):
            self._detected(rows, values)  # raises the error with its place
            raise
        if record is None or not (self.settings.format == "auto" or _count(numbers.applied(values, as_text), record)):
            return None
        return self._understood(source, rows, record, as_text)

    def _understood(
        self, source: Source, rows: Sequence[Row], record: DataFormat, as_text: Sequence[AsText]
    ) -> Understood:
        columns = tuple(dict.fromkeys(str(column) for row in rows for column in row.values))
        return Understood(source=source, record=record, as_text=tuple(as_text), columns=columns)

    def _read(self, values: Values, classes: Mapping[str, Sequence[str]]) -> tuple[DataFormat | None, list[AsText]]:
        """The format of rows, and which of their numbers it reads as text."""
        record, refusal = None, None
        try:
            record = self._detect(values)
        except DataError as error:
            refusal = error
        if record is not None and _count(values, record) == len(values):
            return record, []
        as_text = numbers.needed(values, numbers.candidates(values, classes), self._score)
        if refusal and not as_text:
            raise refusal
        return (self._detect(numbers.applied(values, as_text)) if as_text else record), as_text

    def _score(self, values: Values) -> int:
        """How many of the rows are read."""
        try:
            record = self._detect(values)
        except (DataError, RecursionError):
            return 0
        return _count(values, record) if record else 0

    def _detect(self, values: Values) -> DataFormat | None:
        if self.settings.format != "auto":
            return self.registry.formats[self.settings.format]
        columns = list(dict.fromkeys(str(column) for row in values for column in row))
        for name, detected in self.plugins.ask("detect_format", columns=columns, sample=list(values)):
            if detected is not None and detected not in self.registry.formats:
                raise self.plugins.fault(name, f"detect_format returned {detected!r}, which is not a registered format")
            if detected is not None:
                return self.registry.formats[detected]
        return None

    def _detected(self, rows: Sequence[Row], values: Values) -> DataFormat | None:
        """The format that is detected; an error names the place."""
        try:
            return self._detect(values)
        except DataError as error:
            columns = list(dict.fromkeys(str(column) for row in values for column in row))
            hint = "; ".join([*([error.hint] if error.hint else []), f"the columns are {hints.listed(columns)}"])
            raise DataError(f"{rows[0].place}: {error.message}", hint=hint, problems=error.problems) from error
        except RecursionError as error:
            raise DataError(f"{rows[0].place}: the rows are {TOO_DEEP}") from error

    def _unrecognised(self, rows: Sequence[Row]) -> DataError:
        sample = self._renamed(rows)
        columns = list(dict.fromkeys(str(column) for values in sample for column in values))
        return DataError(
            f"{rows[0].place}: the rows have no known format; their columns are {hints.listed(columns)}",
            hint=hints.of_rows(sample, columns, self.registry),
        )

    def _renamed(self, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
        return [renamed(row.values, self.settings) for row in rows]


def _count(values: Values, record: DataFormat) -> int:
    return sum(why_not(record, row) is None for row in values)


def _begin(source: Source) -> tuple[list[Row | Unreadable], DataError | None]:
    """The first rows of a source, and the error that stops it from being read."""
    read: list[Row | Unreadable] = []
    try:
        read.extend(itertools.islice(source.rows(), SAMPLE))
    except DataError as error:
        return read, error
    return read, None


def _first(source: Source) -> Row:
    """The first row that can be read; what is wrong with the others is reported later."""
    readable = (row for row in source.rows() if isinstance(row, Row))
    if (first := next(readable, None)) is not None:
        return first
    unreadable = next((row for row in source.rows() if isinstance(row, Unreadable)), None)
    if unreadable is None:
        raise DataError(f"data {source.asked!r} has no rows", hint="add rows to it, or name another")
    raise DataError(f"{unreadable.place}: {unreadable.reason}", hint="none of its rows can be read")


def _roots(source: Source, read: Sequence[Row | Unreadable]) -> list[Any]:
    """The first values of a source, rows or not; for one object that is too large for a row, its outline."""
    values = [row.values if isinstance(row, Row) else row.value for row in read]
    present = [value for value in values if value is not None]
    first = source.files[0].path if source.kind == "local" else None
    if present or first is None or not readers.is_object(first):
        return present
    try:
        whole = json_list.outline(first, most=OUTLINED)
    except BrokenFile:
        return []
    return [] if whole is None else [whole]


def _is_whole(roots: Sequence[Any]) -> bool:
    """Whether a file holds one value in which no two lists have one length, as answers and their scores would."""
    if len(roots) != 1:
        return False
    values = roots[0].values() if isinstance(roots[0], Mapping) else ()
    lengths = [len(value) for value in values if isinstance(value, list)]
    return len(set(lengths)) == len(lengths)


def check_columns(columns: Sequence[str], settings: DataSection) -> None:
    """Raise DataError where `data.columns` or `data.split_by` names a column that no row has."""
    for wanted, own in (settings.columns or {}).items():
        if own in columns or wanted in TURN_KEYS:
            continue
        near = difflib.get_close_matches(own, columns, n=1)
        swapped = f"; did you mean {own}={wanted}?" if wanted in columns else ""
        raise DataError(
            f"data.columns: no row has a column {own!r}",
            hint=f"the columns are {hints.listed(columns)}{f'; did you mean {near[0]}?' if near else swapped}",
        )
    if settings.split_by and settings.split_by not in columns:
        near = difflib.get_close_matches(settings.split_by, columns, n=1)
        raise DataError(
            f"data.split_by: no row has a column {settings.split_by!r}",
            hint=f"the columns are {hints.listed(columns)}{f'; did you mean {near[0]}?' if near else ''}",
        )
