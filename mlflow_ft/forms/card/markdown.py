"""Text, code and tables in Markdown that nothing in a value can break: GitHub's, and Showdown's of MLflow's UI."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

LONGEST = 400
"""Letters of one value; the whole of it is in the run."""
SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)([?&;][^=&;\s]*(?:token|key|secret|sig|passw|credential)[^=&;\s]*=)[^&;\s]+"), r"\1***"),
    (re.compile(r"\b(?:hf|ghp|gho|glpat|sk)[_-][A-Za-z0-9_-]{16,}"), "***"),
)
"""A user's name and password in a URL, a parameter of it that grants access, a token by its usual beginning."""
SPECIAL = re.compile(r"([\\`*_{}\[\]#~!])")


def clean(value: Any, *, longest: int = LONGEST) -> str:
    """The value as one line of text that any database takes, without secrets."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def plain(value: Any) -> str:
    """The value as text, in which no sign means anything to Markdown or HTML."""
    text = clean(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", text)


def code(value: Any) -> str:
    """The value as a span of code; its fence is longer than any run of backticks in it."""
    text = clean(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(language: str, lines: Sequence[str]) -> str:
    """A block of code, of lines that are clean."""
    return "\n".join([f"```{language}", *lines, "```"])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are Markdown; `numbers` are the columns that stand to the right."""
    rule = ["---:" if index in numbers else "---" for index, _ in enumerate(columns)]
    return "\n".join(_row(cells) for cells in (columns, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spaced(text: str) -> str:
    """The same with space between the cells of tables: MLflow's UI shows them without any."""
    return re.sub(r"(?m)^\| (?!---).*$", lambda row: row[0].replace(" | ", "&ensp; | "), text)


def bullets(lines: Sequence[str]) -> str:
    """A list of lines that are Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def number(value: float | None) -> str:
    """A number as people read it; `none` where it is not a number."""
    if value is None or not math.isfinite(value):
        return "none"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10_000 else f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
