"""Tests marked `fault` inject faults: `make test` runs a few, `make faults` all of them, and prints a table."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

ALL = os.environ.get("ALL_FAULTS") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long ones unless all are asked for, and note the kind of fault of each test for the table."""
    here = [item for item in items if item.get_closest_marker("fault")]
    for item in here:
        item.user_properties.append(("fault", item.get_closest_marker("fault").args[0]))  # type: ignore[union-attr]  # has
    if not ALL:
        long = [item for item in here if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of `docs/reliability.md`: for each kind, how many faults were tried, survived and not."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            kinds = dict(getattr(report, "user_properties", ()))
            if "fault" in kinds and (report.when == "call" or outcome != "passed"):
                counts.setdefault(kinds["fault"], Counter())[outcome] += 1
    if not (ALL and counts):
        return
    terminalreporter.write_line("\n| fault | tried | survived | lost |\n|---|---|---|---|")
    for kind, of_kind in counts.items():
        tried = of_kind.total() - of_kind["skipped"]
        terminalreporter.write_line(f"| {kind} | {tried} | {of_kind['passed']} | {tried - of_kind['passed']} |")
