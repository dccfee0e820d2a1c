"""JSON as rows need it: a key that occurs twice, a half of a character or a bottomless nesting is told, never taken."""

from __future__ import annotations

import json
from typing import Any

MAX_ROW_BYTES = 64 * 2**20
"""A longer row is none: a file without line breaks, or no text at all."""
SURROGATE = "\\ud"


class RowError(ValueError):
    """One row cannot be read; the message says why."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"malformed JSON: the key {twice!r} occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse(text: str) -> Any:
    """A value out of one piece of JSON, or the RowError that says why there is none."""
    try:
        value, end = DECODER.raw_decode(text, _begin(text))
        if text[end:].strip():
            raise RowError(f"malformed JSON: more stands behind the value (column {end + 1})")
        return checked(value, text)
    except RowError as error:
        return error
    except (ValueError, RecursionError) as error:
        return malformed(error)


def _begin(text: str) -> int:
    return len(text) - len(text.lstrip())


def checked(value: Any, text: str) -> Any:
    """The value, or a RowError where its text escapes half of a character, which no encoding can hold."""
    if SURROGATE in text or SURROGATE.upper() in text.upper():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            return RowError(f"holds a lone surrogate (\\u{ord(error.object[error.start]):x}), which is no character")
    return value


def malformed(error: Exception) -> RowError:
    """What is wrong with a piece of JSON, in one line."""
    if isinstance(error, RecursionError):
        return RowError("malformed JSON: nested too deeply")
    place = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
    return RowError(f"malformed JSON: {getattr(error, 'msg', error)}{place}")
