"""JSON as rows need it: a key that occurs twice, a half of a character or a bottomless nesting is told, never taken."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

MAX_ROW_BYTES = 64 * 2**20
"""A longer row is none: a file without line breaks, or no text at all."""
MAX_DEPTH = 100
"""What comes behind (templates, hashes, copies) calls itself for every level, and Python ends that at 1,000 calls."""
SURROGATES = ("\\ud", "\\uD")
CUT = "it was cut short, or a quote or a bracket is not closed"
BEGUN = re.compile(r"\s*(u[0-9a-fA-F]{0,4}|-|[.eE][-+]?|tr?u?|fa?l?s?|nu?l?|Na?|-?In?f?i?n?i?t?)?\s*")
"""What may still stand where a value, an escape or a name was begun, and not ended."""
NOT_UTF_8 = "not UTF-8 text; save the file as UTF-8"
NO_ROW = "longer than {size:,} bytes, which is no row"


class RowError(ValueError):
    """One row cannot be read; the message says why."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise RowError(f"malformed JSON: the key {twice!r} occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
LENIENT = json.JSONDecoder(parse_int=float)
"""Finds the end of a value that is well formed, but refused for its keys or for a number of too many digits."""


def parse(text: str) -> Any:
    """A value out of one piece of JSON, or the RowError that says why there is none."""
    try:
        value, end = DECODER.raw_decode(text, _begin(text))
    except (ValueError, RecursionError) as error:
        return refused(error)
    if text[end:].strip():
        return RowError(f"malformed JSON: more stands behind the value (column {end + 1})")
    return checked(value, text)


def _begin(text: str) -> int:
    return len(text) - len(text.lstrip())


def checked(value: Any, text: str) -> Any:
    """The value, or a RowError where it is nested too deeply or escapes half of a character, which no encoding has."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        return RowError(f"nested more than {MAX_DEPTH} levels deep")
    if any(escape in text for escape in SURROGATES):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            return RowError(f"holds a lone surrogate (\\u{ord(error.object[error.start]):x}), which is no character")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return False
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether JSON is wrong only in that it ends too early."""
    return error.msg.startswith("Unterminated string") or bool(BEGUN.fullmatch(text, error.pos))


def refused(error: Exception) -> RowError:
    """What is wrong with a piece of JSON, in one line."""
    if isinstance(error, RowError):
        return error
    if isinstance(error, RecursionError):
        return RowError("malformed JSON: nested too deeply")
    if isinstance(error, json.JSONDecodeError):
        text = error.doc.rstrip()
        end = f", and the row ends at column {len(text)}: {CUT}" if is_cut(error, text) else ""
        return RowError(f"malformed JSON: {error.msg} (column {error.colno}){end}")
    return RowError("holds a number of too many digits")  # the only other ValueError of the decoder
