"""Text, code and tables in Markdown that no value can break, for GitHub and for Showdown (MLflow's UI)."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

LONGEST = 400
"""Characters of one value; the run has all of it."""
SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)([?&;][^=&;\s]*(?:token|key|secret|sig|passw|credential)[^=&;\s]*=)[^&;\s]+"), r"\1***"),
    (re.compile(r"\b(?:hf|ghp|gho|glpat|sk)[_-][A-Za-z0-9_-]{16,}"), "***"),
)
"""User name and password in a URL, a URL parameter that grants access, a token by its usual prefix."""
SPECIAL = re.compile(r"([\\`*_{}\[\]#~!])")


def clean(value: Any, *, longest: int = LONGEST) -> str:
    """The value as one line of text that any database accepts, without secrets."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def plain(value: Any) -> str:
    """The value as text, with the special characters of Markdown and HTML escaped."""
    text = clean(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", text)


def code(value: Any) -> str:
    """The value as a code span; its fence is longer than any run of backticks in it."""
    text = clean(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def as_text(markdown: str) -> str:
    """What a line made of `plain` and `code` says, without marks."""
    spans = re.sub(r"(`+) ?(.*?) ?\1", r"\2", markdown)
    return html.unescape(re.sub(rf"\\{SPECIAL.pattern}", r"\1", spans))


def block(language: str, lines: Sequence[str]) -> str:
    """A code block; its lines are clean already."""
    return "\n".join([f"```{language}", *lines, "```"])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are Markdown; `numbers` are the columns to align right."""
    rule = ["---:" if index in numbers else "---" for index, _ in enumerate(columns)]
    return "\n".join(_row(cells) for cells in (columns, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spaced(text: str) -> str:
    """The same text with space between table cells, which MLflow's UI leaves out."""
    return re.sub(r"(?m)^\| (?!---).*$", lambda row: row[0].replace(" | ", "&ensp; | "), text)


def bullets(lines: Sequence[str]) -> str:
    """A list; its lines are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def number(value: float | None) -> str:
    """A number for people; `none` if it is missing, NaN or infinite."""
    if value is None or not math.isfinite(value):
        return "none"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10_000 else f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
