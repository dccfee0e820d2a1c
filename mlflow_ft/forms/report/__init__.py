"""`report.html`: one self-contained page about a run, for people who decide whether its model is used.

Of several runs there is a page that compares them.
"""

from __future__ import annotations

from mlflow_ft.forms.report.facts import LIMITS_FILE, Facts, gathered
from mlflow_ft.forms.report.page import as_page
from mlflow_ft.forms.report.several import LETTERS
from mlflow_ft.forms.report.several_page import as_page as comparison

__all__ = ["FILE", "LETTERS", "LIMITS_FILE", "Facts", "as_page", "comparison", "gathered"]

FILE = "report.html"
