"""Plots as SVG for self-contained pages: readable without a script, in light and in dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATES = Path(__file__).parent / "templates"
"""The folder of the pages' templates and of their style sheet."""
INK, MARK, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
SERIES = (FIRST, SECOND, "#010207", "#010208", "#010209", "#01020a")
"""The colours of curves that are drawn together; the page's style sheet has them as `--series-1` to `--series-6`."""
_COLOURS = {INK: "currentColor", MARK: "var(--error)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
"""Placeholder colours that occur nowhere else, replaced by those of the style sheet, which has a dark mode."""


def page(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """A page from a template; its values are escaped."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader([folder, TEMPLATES])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def svg(name: str, draw: Callable[[Axes], None], *, whole: bool = True) -> str:
    """The drawing of `draw` for inclusion in a page: its ids are unique, and its colours come from the style sheet.

    `whole`: whether the marks of the vertical axis are whole numbers.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.color": INK, "font.size": 9}):
        figure = Figure(figsize=(6.4, 2.3), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=whole))
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
