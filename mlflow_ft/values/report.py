"""The report of the data checks: one result for each check, the worst first."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mlflow_ft.rows import Severity

SEVERITIES: tuple[Severity, ...] = ("error", "warn", "info")
"""The worst first."""
_FIELDS = ("name", "severity", "count", "share", "examples", "summary", "remedy", "fix", "details")
_LONGEST_TEXT = 1000
COLUMNS = ("check", "severity", "rows", "share", "what it means")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found."""

    name: str
    severity: Severity
    summary: str
    count: int
    share: float
    examples: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = ""
    fix: str = ""
    rows: array[int] = field(default_factory=lambda: array("q"))
    """The index of every row that was found; empty in a report that was loaded again."""
    removable: array[int] = field(default_factory=lambda: array("q"))
    """The index of every row that the fix leaves out."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of all checks, the worst first; within a severity, those that found something first."""

    rows: int
    checks: tuple[CheckResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, without the indices of the rows."""
        return {
            "rows": self.rows,
            "checks": [json_value({name: getattr(check, name) for name in _FIELDS}) for check in self.checks],
        }

    @classmethod
    def from_dict(cls, report: Mapping[str, Any], removable: Mapping[Any, Sequence[str]] | None = None) -> Report:
        """The report from the results of `as_dict` and `removable`; from JSON, the keys of the latter are strings."""
        rows: dict[str, list[int]] = {}
        for index, names in (removable or {}).items():
            for name in names:
                rows.setdefault(name, []).append(int(index))
        checks = []
        for check in report["checks"]:
            fields = {name: check[name] for name in _FIELDS} | {"examples": tuple(check["examples"])}
            checks.append(CheckResult(**fields, removable=array("q", rows.get(check["name"], ()))))
        return cls(rows=report["rows"], checks=tuple(checks))

    def worst(self, at_least: Severity) -> tuple[CheckResult, ...]:
        """The checks that found something and are at least this severe."""
        severe = SEVERITIES[: SEVERITIES.index(at_least) + 1]
        return tuple(check for check in self.checks if check.count and check.severity in severe)

    def removable(self) -> dict[int, tuple[str, ...]]:
        """Index of every row that a fix leaves out -> the checks whose fix it is."""
        names: dict[int, tuple[str, ...]] = {}
        for check in self.checks:
            for row in check.removable:
                names[row] = (*names.get(row, ()), check.name)
        return dict(sorted(names.items()))

    def metrics(self) -> dict[str, float]:
        """Findings by severity, in rows."""
        return {
            name: float(sum(check.count for check in self.checks if check.severity == severity))
            for name, severity in (("errors", "error"), ("warnings", "warn"))
        }

    def numbers(self) -> dict[str, float]:
        """Rows of each check that found some as `check/<name>`, and further numbers of checks."""
        numbers = {f"check/{check.name}": float(check.count) for check in self.checks if check.count}
        for check in self.checks:
            more = check.details.get("metrics") or {}
            numbers |= {name: float(value) for name, value in more.items() if value is not None}
        return numbers

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The columns and the rows of a table for the terminal."""
        rows: list[tuple[str, ...]] = []
        for check in self.checks:
            share = percent(check.share) if check.count else ""
            rows.append((check.name, check.severity, f"{check.count:,}", share, check.summary))
        return COLUMNS, rows


def percent(share: float) -> str:
    """A share for people; a small share is never shown as 0."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def json_value(value: Any) -> Any:
    """A value for JSON: NaN and infinity become null, numpy arrays lists; long texts are cut."""
    if isinstance(value, str):
        return value[:_LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | array):
        return [json_value(item) for item in value]
    plain = getattr(value, "tolist", None)  # numpy's numbers and arrays have it
    return json_value(cast("Callable[[], Any]", plain)()) if plain else json_value(str(value))
