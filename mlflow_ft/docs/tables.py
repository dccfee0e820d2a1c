"""Shared by all pages that are generated from the code."""

from __future__ import annotations

NOTE = "<!-- Made by `python -m mlflow_ft.docs`: change the code, then run it. -->"


def table_row(*cells: str) -> str:
    """One line of a table; bars in a cell are escaped, and line breaks become spaces."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
