"""Values from rows: JSON that is stored as text, what to call a value, and names that nearly match."""

from __future__ import annotations

import ast
import difflib
import json
import reprlib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

from mlflow_ft import Opaque

DEEPEST = 100
"""Levels of nesting in a tool or in the arguments of a call."""
KINDS: Sequence[tuple[Any, str]] = (
    (str, "text"),
    (Mapping, "an object"),
    (list | tuple, "a list"),
    (int | float, "a number"),
    (Decimal, "a decimal number"),
    (bytes, "binary data"),
    (datetime, "a timestamp"),
    (date, "a date"),
    (time, "a time"),
    (timedelta, "a duration"),
)
"""Types in the order in which they are tested, and what they are called; to Python a timestamp is also a date."""
_LONGEST_NAME = 40
_LONGEST_PATH = 100
_MOST_NAMES = 60
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2


def from_json(value: Any) -> Any:
    """A list or an object that a CSV or Parquet file stores as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def from_literal(text: str) -> Any:
    """A list or an object that is written as Python writes it (`{'a': None}`); any other text as it is."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in the text
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def key_in(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that has a value."""
    for key in keys:
        if values.get(key) is not None:
            return key
    return None


def named(value: Any) -> str:
    """What to call a value: JSON's "text", "a list", "an object", "a number" or "null", else a table's type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Opaque):
        return value.what
    return next((words for kind, words in KINDS if isinstance(value, kind)), type(value).__name__)


def not_text(value: Any) -> str:
    """What to say of a value that should be text: "a number, not text", with a remedy for a table's types."""
    is_of_json = value is None or isinstance(value, Mapping | list | tuple | str | int | float | Opaque)
    return f"{named(value)}, not text" + ("" if is_of_json else "; cast the column to text")


def shown(value: Any) -> str:
    """A value shortened for a message, however long or deep it is."""
    return _short.repr(value)


def listed(names: Iterable[Any]) -> str:
    """Names in a message, at most a dozen; "none" where there are none."""
    short = [str(name)[:_LONGEST_NAME] for name in names]
    return ", ".join(short[:12]) + (" ..." if len(short) > 12 else "") or "none"


def near(name: Any, known: Collection[Any]) -> str | None:
    """The nearest of the known names, ignoring case; None where none is near."""
    names = [str(known_name) for known_name in list(known)[:_MOST_NAMES]]
    folded = {known_name.casefold(): known_name for known_name in names if len(known_name) <= _LONGEST_NAME}
    matches = difflib.get_close_matches(str(name)[:_LONGEST_NAME].casefold(), folded, n=1, cutoff=0.75)
    return folded[matches[0]] if matches else None


def meant(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """ "; did you mean `output` where it says `ouptut`?", where a key with a value is close to one, else ""."""
    there = [key for key, value in values.items() if value is not None]
    for name in names:
        if key := near(name, there):
            return f"; did you mean `{name}` where it says `{key}`?"
    return ""


def check_json(value: Any, what: str, *, path: str = "", depth: int = 0) -> None:
    """Raise ValueError where a value cannot be written as JSON: a date, an image, NaN, or nested too deeply.

    Such values come from tables; cast to text, JSON can hold them.
    """
    if depth > DEEPEST:
        raise ValueError(f"{what} nested more than {DEEPEST} levels deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_json(inner, what, path=f"{path}.{key}" if path else str(key), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_json(inner, what, path=f"{path}[]", depth=depth + 1)
    elif isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{what} not JSON: `{path[:_LONGEST_PATH]}` is {value}, which JSON cannot represent")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(
            f"{what} not JSON: `{path[:_LONGEST_PATH]}` is {named(value)}; cast the column to text, or write the rows "
            "as JSON lines"
        )
