"""What every page that is made from the code has in common."""

from __future__ import annotations

NOTE = "<!-- Made by `python -m mlflow_ft.docs`: change the code, then run it. -->"


def table_row(*cells: str) -> str:
    """One line of a table; a bar inside a cell stays a bar."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
