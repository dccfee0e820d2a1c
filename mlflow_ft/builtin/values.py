"""Values out of rows: JSON that is kept as text, what a value is called, and names that nearly fit."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

DEEPEST = 100
"""Levels of nesting in a tool or in the arguments of a call."""
_LONGEST_NAME = 40
_MOST_NAMES = 60
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2


def from_json(value: Any) -> Any:
    """What a CSV or Parquet file keeps as text: a list or an object written as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def key_in(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that there is a value under."""
    for key in keys:
        if values.get(key) is not None:
            return key
    return None


def named(value: Any) -> str:
    """What a value is, in the words of JSON: "text", "a list", "an object", "a number", "null"."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, words in ((str, "text"), (Mapping, "an object"), (list | tuple, "a list"), (int | float, "a number")):
        if isinstance(value, kind):
            return words
    return type(value).__name__


def shown(value: Any) -> str:
    """A value as a message can show it, however long or deep it is."""
    return _short.repr(value)


def listed(names: Iterable[Any]) -> str:
    """Names in a message, at most a dozen; "none" where there are none."""
    found = [str(name)[:_LONGEST_NAME] for name in names]
    return ", ".join(found[:12]) + (" ..." if len(found) > 12 else "") or "none"


def near(name: Any, known: Collection[Any]) -> str | None:
    """The one of the names known that is nearest, upper and lower case alike; None where none is near."""
    folded = {str(one).casefold(): str(one) for one in list(known)[:_MOST_NAMES] if len(str(one)) <= _LONGEST_NAME}
    found = difflib.get_close_matches(str(name)[:_LONGEST_NAME].casefold(), folded, n=1, cutoff=0.75)
    return folded[found[0]] if found else None


def meant(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """ "; did you mean `output` where it says `ouptut`?", where a key that has a value is near one, else ""."""
    there = [key for key, value in values.items() if value is not None]
    for name in names:
        if found := near(name, there):
            return f"; did you mean `{name}` where it says `{found}`?"
    return ""


def without_nulls(value: Any, what: str, *, depth: int = 0) -> Any:
    """The value without the keys that Arrow fills with null because other rows have them.

    Raises:
        ValueError: it is nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError(f"{what} nested more than {DEEPEST} levels deep")
    if isinstance(value, Mapping):
        return {key: without_nulls(one, what, depth=depth + 1) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_nulls(one, what, depth=depth + 1) for one in value]
    return value
