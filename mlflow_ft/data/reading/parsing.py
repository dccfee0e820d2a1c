"""Parses JSON strictly: duplicate keys, unpaired surrogates and excessive nesting are errors."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

MAX_ROW_BYTES = 64 * 2**20
"""A longer line is not a row: the file has no line breaks, or is not text."""
MAX_DEPTH = 100
"""Later steps (templates, hashes, copies) recurse for every level, and Python allows 1,000 calls."""
SURROGATES = ("\\ud", "\\uD")
CUT = "it is truncated, or a quote or a bracket is not closed"
BEGUN = re.compile(r"\s*(u[0-9a-fA-F]{0,4}|-|[.eE][-+]?|tr?u?|fa?l?s?|nu?l?|Na?|-?In?f?i?n?i?t?)?\s*")
"""What may follow where a value, an escape or a name began and did not end."""
NOT_UTF_8 = "not UTF-8 text; save the file as UTF-8"
NO_ROW = "longer than {size:,} bytes, too long for a row"


class RowError(ValueError):
    """One row cannot be read; the message says why."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise RowError(f"malformed JSON: the key {twice!r} occurs twice")
    return members


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
LENIENT = json.JSONDecoder(parse_int=float)
"""Finds the end of a value that is well formed, but refused for its keys or for a number with too many digits."""


def parse(text: str) -> Any:
    """The value of one piece of JSON, or the RowError that says why there is none."""
    try:
        value, end = DECODER.raw_decode(text, _begin(text))
    except (ValueError, RecursionError) as error:
        return refused(error)
    if text[end:].strip():
        return RowError(f"malformed JSON: extra data after the value (column {end + 1})")
    return checked(value, text)


def _begin(text: str) -> int:
    return len(text) - len(text.lstrip())


def checked(value: Any, text: str) -> Any:
    """The value, or a RowError where it is nested too deeply or has an unpaired surrogate, which cannot be encoded."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        return RowError(f"nested more than {MAX_DEPTH} levels deep")
    if any(escape in text for escape in SURROGATES):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            return RowError(f"contains an unpaired surrogate (\\u{ord(error.object[error.start]):x})")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [element for element in level if isinstance(element, dict | list)]
        if not nested:
            return False
        level = [inner for outer in nested for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the only fault of the JSON is that it ends too early."""
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
    return RowError("contains a number with too many digits")  # the only other ValueError of the decoder
