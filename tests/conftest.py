"""Tests marked `fault` inject faults into real runs; with the long ones, they end in a table."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

LONG = os.environ.get("LONG_TESTS") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note the kind of fault of each test for the table."""
    for item in items:
        if fault := item.get_closest_marker("fault"):
            item.user_properties.append(("fault", fault.args[0]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of `docs/reliability.md`: for each kind, how many faults were tried, survived and not."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            kinds = dict(getattr(report, "user_properties", ()))
            if "fault" in kinds and (report.when == "call" or outcome != "passed"):
                counts.setdefault(kinds["fault"], Counter())[outcome] += 1
    if not (LONG and counts):
        return
    terminalreporter.write_line("\n| fault | tried | survived | lost |\n|---|---|---|---|")
    for kind, of_kind in counts.items():
        tried = of_kind.total() - of_kind["skipped"]
        terminalreporter.write_line(f"| {kind} | {tried} | {of_kind['passed']} | {tried - of_kind['passed']} |")
