"""One self-contained page of rows: every token, with the learned ones marked; it needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft.data import drawings


def mask_page(rows: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The page for rows as `mlflow-ft data show --json` prints them."""
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
    return drawings.page("mask.html", title=title, views=views)
