"""One self-contained page of rows: every token, with the learned ones marked; it needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def mask_page(rows: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The page for rows as `mlflow-ft data show --json` prints them."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    views = []
    for row in rows:
        parts = [("", row), ("rejected", row["rejected"])] if row.get("rejected") else [("", row)]
        for label, part in parts:
            tokens = [
                {"text": text, "learned": bool(learned), "blank": not text.strip()}
                for text, learned in zip(part["tokens"], part["supervised"], strict=True)
            ]
            learned = sum(part["supervised"])
            views.append({"row": row, "label": label, "tokens": tokens, "learned": learned})
    return environment.get_template("mask.html").render(title=title, views=views)
