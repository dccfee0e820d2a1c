"""`report.html`: one self-contained page about a run, for people who decide whether its model is used."""

from __future__ import annotations

from mlflow_ft.forms.report.facts import Facts, gathered
from mlflow_ft.forms.report.page import as_page

__all__ = ["FILE", "Facts", "as_page", "gathered"]

FILE = "report.html"
