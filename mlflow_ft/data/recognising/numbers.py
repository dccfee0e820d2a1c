"""Numbers, true and false where a format needs text: used as JSON writes them, where the rows agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any, Literal

from mlflow_ft.rows import Row

Sort = Literal["a number", "true or false"]
SPEAKERS = ("role", "from", "speaker", "sender")
WORDS = ("content", "value", "text")
"""Keys of a turn that say who speaks, and what."""
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AsText:
    """A column, or one speaker's words in the turns of a column, that holds numbers where text is needed."""

    column: str
    sort: Sort
    speaker: str = ""
    classes: tuple[str, ...] = ()
    """The names of the classes that the numbers stand for."""
    example: Any = None

    def __str__(self) -> str:
        where = f"what {self.speaker} says in `{self.column}`" if self.speaker else f"`{self.column}`"
        shown = f"{_json(self.example)} becomes the text {json.dumps(self.text(self.example), ensure_ascii=False)}"
        if self.classes:
            return f"{where} holds class numbers; the class names are used ({shown})"
        return f"{where} is {self.sort}; it is used as text ({shown})"

    def text(self, value: Any) -> str:
        """A value as text."""
        if not self.classes:
            return _json(value)
        if not isinstance(value, int) or not 0 <= value < len(self.classes):
            raise ValueError(f"`{self.column}` is {value}, but no class has this number")
        return self.classes[value]

    def apply(self, values: Values) -> dict[str, Any]:
        """A row's columns with text in place of the numbers.

        Raises:
            ValueError: the row has a value of another type than the others.
        """
        value = values.get(self.column)
        if not self.speaker:
            return {**values, self.column: self._checked(value, f"`{self.column}`")}
        return {**values, self.column: self._turns(value)}

    def _turns(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._turn(value)
        return [self._turn(turn) for turn in value] if isinstance(value, list) else value

    def _turn(self, turn: Any) -> Any:
        said = _said(turn)
        if said is None or said[0] != self.speaker:
            return turn
        _, key, words = said
        return {**turn, key: self._checked(words, f"what {self.speaker} says in `{self.column}`")}

    def _checked(self, value: Any, where: str) -> Any:
        if value is None or sort_of(value) == self.sort:
            return None if value is None else self.text(value)
        raise ValueError(
            f"{where} is {_named(value)}, but {self.sort} in earlier rows; write all of them as text, in quotes"
        )


def sort_of(value: Any) -> Sort | None:
    """What a value is, where it is a number that JSON can represent, or true or false."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | Decimal) or (isinstance(value, float) and isfinite(value)):
        return "a number"
    return None


def _json(value: Any) -> str:
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def _named(value: Any) -> str:
    if isinstance(value, float | bool):
        return json.dumps(value)
    return "text" if isinstance(value, str) else sort_of(value) or f"of another type ({type(value).__name__})"


def candidates(rows: Sequence[Values], classes: Mapping[str, Sequence[str]]) -> list[AsText]:
    """Every column, and every speaker in turns, with only numbers or only true and false in all of these rows."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for values in rows:
        for column, value in values.items():
            for speaker, words in _spoken(value):
                seen.setdefault((str(column), speaker), []).append(words)
    columns = []
    for (column, speaker), every_value in seen.items():
        present = [value for value in every_value if value is not None]
        sorts = {sort_of(value) for value in present}
        if len(sorts) == 1 and (sort := sorts.pop()):
            names = () if speaker else tuple(classes.get(column, ()))
            named = [value for value in present if not names or value in range(len(names))]
            if named:
                columns.append(AsText(column=column, sort=sort, speaker=speaker, classes=names, example=named[0]))
    return columns


def _spoken(value: Any) -> Iterator[tuple[str, Any]]:
    """Speaker and words in a value: a list of turns has several speakers, anything else has the speaker ""."""
    turns = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if turns is None:
        yield "", value
        return
    for turn in turns:
        if (said := _said(turn)) is not None:
            yield said[0], said[2]


def _said(turn: Any) -> tuple[str, str, Any] | None:
    """The speaker of a turn, the key of its words, and the words."""
    if not isinstance(turn, Mapping):
        return None
    speaker = next((turn[key] for key in SPEAKERS if isinstance(turn.get(key), str)), None)
    key = next((key for key in WORDS if turn.get(key) is not None), None)
    return None if speaker is None or key is None else (speaker, key, turn[key])


def needed(rows: Sequence[Values], columns: Sequence[AsText], score: Callable[[Sequence[Values]], int]) -> list[AsText]:
    """The columns without which fewer rows are read, as `score` counts them; [] where they help no row."""
    best = score(applied(rows, columns)) if columns else 0
    if best <= (score(rows) if columns else 0):
        return []
    wanted = list(columns)
    for column in columns:
        others = [other for other in wanted if other != column]
        if score(applied(rows, others)) >= best:
            wanted = others
    return wanted


def applied(rows: Sequence[Values], columns: Sequence[AsText]) -> list[Values]:
    """The rows with text in place of the numbers; a row with another type there stays as it is, to be refused."""
    return [_with_text_or_as_it_is(values, columns) for values in rows]


def _with_text_or_as_it_is(values: Values, columns: Sequence[AsText]) -> Values:
    try:
        return with_text(values, columns)
    except ValueError:
        return values


def with_text(values: Values, columns: Sequence[AsText]) -> Values:
    """One row with text in place of the numbers.

    Raises:
        ValueError: the row has a value of another type than the others.
    """
    for column in columns:
        values = column.apply(values)
    return values


def class_names(row: Row | None, renamed: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """The class names of a table's columns, by the columns' present names."""
    table = getattr(row.values, "table", None) if row else None
    return {renamed.get(name, name): names for name, names in (table.classes if table else {}).items()}
