"""The quality report as one self-contained page: tables, examples and plots; it needs no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft.data import drawings
from mlflow_ft.values.report import SEVERITIES, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"error": "error", "warn": "warning", "info": "remark"}
_PLOTTED = ("histogram", "sizes", "metrics")


def quality_page(report: Mapping[str, Any], *, title: str) -> str:
    """The page for a report as `Report.as_dict` returns it."""
    views = [_view(check) for check in report["checks"]]
    worst, verdict = _verdict(report["checks"])
    return drawings.page("quality.html", title=title, rows=report["rows"], worst=worst, verdict=verdict, checks=views)


def _verdict(checks: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The worst severity with findings, and the number of checks with findings for each."""
    severities = [check["severity"] for check in checks if check["count"]]
    counts = [(severity, severities.count(severity)) for severity in SEVERITIES if severity in severities]
    words = [f"{count} {NAMES[severity]}{'s' if count > 1 else ''}" for severity, count in counts]
    return counts[0][0] if counts else "", ", ".join(words) or "nothing was found"


def _view(check: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name.replace("_", " "): _words(value) for name, value in check["details"].items() if name not in _PLOTTED}
    return {
        **check,
        "label": NAMES[check["severity"]],
        "percent": percent(check["share"] or 0.0) if check["count"] else "",
        "facts": facts,
        "plots": list(plots(check)),
    }


def _words(value: Any) -> str:
    """A detail as text."""
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items()) or "–"
    return ", ".join(map(_words, value)) or "–" if isinstance(value, list | tuple) else str(value)


def plots(check: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """A plot of each series among the details, with its caption."""
    histogram, sizes = check["details"].get("histogram"), check["details"].get("sizes")
    if _is_histogram(histogram) and any(any(counts) for counts in _series(histogram).values()):
        drawing = drawings.svg(f"{check['name']}-histogram", lambda axes: _draw_histogram(axes, histogram))
        yield {"svg": drawing, "caption": f"rows by {histogram['x']}"}
    if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
        drawing = drawings.svg(f"{check['name']}-sizes", lambda axes: _draw_sizes(axes, sizes))
        yield {"svg": drawing, "caption": "rows in the largest groups"}


def _is_histogram(value: Any) -> bool:
    """Whether a detail can be plotted: a plugin may use the name for something else."""
    if not isinstance(value, Mapping) or not {"x", "edges", "counts"} <= set(value):
        return False
    return all(len(counts) == len(value["edges"]) - 1 for counts in _series(value).values())


def _series(histogram: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
    counts = histogram["counts"]
    return counts if isinstance(counts, Mapping) else {"": counts}


def _draw_histogram(axes: Axes, histogram: Mapping[str, Any]) -> None:
    edges, series = histogram["edges"], _series(histogram)
    for (name, counts), colour in zip(series.items(), (drawings.FIRST, drawings.SECOND), strict=False):
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.55 if len(series) > 1 else 0.85, label=name)
    mark = histogram.get("mark")
    if mark and mark <= 2 * edges[-1]:
        axes.axvline(mark, color=drawings.MARK, linewidth=1.2, label=f"max_length {mark:,}")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=drawings.INK, fontsize=8)
    axes.set_xlabel(histogram["x"], parse_math=False)
    axes.set_ylabel("rows")


def _draw_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.bar([str(number) for number in range(1, len(sizes) + 1)], sizes, color=drawings.FIRST, alpha=0.85)
    axes.set_xlabel("group, largest first")
    axes.set_ylabel("rows")
