"""The quality report as one self-contained page: tables, examples and plots; it needs no script."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.values.report import SEVERITIES, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATES = Path(__file__).parent / "templates"
NAMES = {"error": "error", "warn": "warning", "info": "remark"}
_INK, _MARK, _FIRST, _SECOND = "#010203", "#010204", "#010205", "#010206"
_COLOURS = {_INK: "currentColor", _MARK: "var(--error)", _FIRST: "var(--first)", _SECOND: "var(--second)"}
"""Placeholder colours that occur nowhere else, replaced by those of the style sheet, which has a dark mode."""
_PLOTTED = ("histogram", "sizes", "metrics")


def quality_page(report: Mapping[str, Any], *, title: str) -> str:
    """The page for a report as `Report.as_dict` returns it."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    views = [_view(check) for check in report["checks"]]
    worst, verdict = _verdict(report["checks"])
    page = environment.get_template("quality.html")
    return page.render(title=title, rows=report["rows"], worst=worst, verdict=verdict, checks=views)


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
        "plots": list(_plots(check)),
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


def _plots(check: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """A plot of each series among the details, with its caption."""
    histogram, sizes = check["details"].get("histogram"), check["details"].get("sizes")
    if _is_histogram(histogram) and any(any(counts) for counts in _series(histogram).values()):
        drawing = _svg(f"{check['name']}-histogram", lambda axes: _draw_histogram(axes, histogram))
        yield {"svg": drawing, "caption": f"rows by {histogram['x']}"}
    if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
        drawing = _svg(f"{check['name']}-sizes", lambda axes: _draw_sizes(axes, sizes))
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
    for (name, counts), colour in zip(series.items(), (_FIRST, _SECOND), strict=False):
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.55 if len(series) > 1 else 0.85, label=name)
    mark = histogram.get("mark")
    if mark and mark <= 2 * edges[-1]:
        axes.axvline(mark, color=_MARK, linewidth=1.2, label=f"max_length {mark:,}")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
    axes.set_xlabel(histogram["x"], parse_math=False)
    axes.set_ylabel("rows")


def _draw_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.bar([str(number) for number in range(1, len(sizes) + 1)], sizes, color=_FIRST, alpha=0.85)
    axes.set_xlabel("group, largest first")
    axes.set_ylabel("rows")


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """The drawing of `draw` for inclusion in a page: its ids are unique, and its colours come from the style sheet."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.color": _INK, "font.size": 9}):
        figure = Figure(figsize=(6.4, 2.3), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(buffer.getvalue(), re.sub(r"\W+", "-", name))


def _inlined(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r' width="[^"]*pt" height="[^"]*pt"', ' role="img"', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for drawn, colour in _COLOURS.items():
        svg = svg.replace(drawn, colour)
    return svg
