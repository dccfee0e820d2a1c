"""The panel of a training on a terminal: steps, losses as small curves, speed, memory, the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mlflow_ft.progress.words import Latest, sparkline

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 80
"""Characters of the panel; a narrower terminal has a narrower one."""
CURVE = 24
"""Characters of a curve."""
PER_SECOND = 4


class TrainingPanel:
    """One training, drawn anew a few times in a second."""

    def __init__(self, console: Console, title: str, total: float, unit: str) -> None:
        self._console, self._title = console, title
        self._values = Latest()
        self._steps = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._steps.add_task(title, total=total)

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        """Add completed steps."""
        self._steps.update(self._task, advance=steps)
        if note:
            self.fact("note", note)

    def point(self, name: str, value: float, *, step: int) -> None:
        """A new value of a curve."""
        self._values.point(name, value, step=step)

    def fact(self, name: str, text: str) -> None:
        """What else is true now."""
        self._values.facts[name] = text

    def __rich__(self) -> RenderableType:
        curves = [self._curve(name, dict(curve)) for name, curve in list(self._values.curves.items())]
        facts = list(self._values.facts.values())
        lines = [*curves, *([Text(" · ".join(facts))] if facts else [])]
        return Panel(
            Group(self._steps, *lines), title=self._title, title_align="left", width=min(WIDTH, self._console.width)
        )

    def _curve(self, name: str, curve: dict[int, float]) -> Text:
        best = min(curve, key=lambda step: curve[step])
        line = "" if self._console.options.ascii_only else sparkline(list(curve.values()), CURVE)
        lowest = f"  lowest {curve[best]:.3f} at step {best:,}" if len(curve) > 1 else ""
        return Text(f"{name:<14} {list(curve.values())[-1]:<8.3f}{line}{lowest}", no_wrap=True, overflow="ellipsis")


@contextmanager
def shown(console: Console, title: str, total: float, unit: str) -> Iterator[TrainingPanel]:
    """The panel while a training goes on; its last state stays on the screen."""
    panel = TrainingPanel(console, title, total, unit)
    with Live(panel, console=console, refresh_per_second=PER_SECOND):
        yield panel
