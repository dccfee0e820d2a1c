"""Progress for people: bars and a panel on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from mlflow_ft.progress.plain import Lines
from mlflow_ft.progress.words import LATEST, duration

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LATEST", "Bar", "Progress", "TrainingBar", "duration"]

PLAIN = ("NO_COLOR", "CI", "MLFLOW_RUN_ID")
"""Variables with which a terminal gets plain lines, too: no colours are wanted, CI, the process of `mlflow run`."""


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        """Add `steps` completed steps; `note` is shown after the bar."""


class TrainingBar(Bar, Protocol):
    """A training: its steps, its curves and what else is true now."""

    def point(self, name: str, value: float, *, step: int) -> None:
        """A new value of a curve, such as `loss`."""

    def fact(self, name: str, text: str) -> None:
        """What else is true now, in words, such as `4.3 s/step`; a later one of the same name replaces it."""


class Progress:
    """Reports progress on stderr, so that stdout stays free for programs.

    >>> progress = Progress(quiet=True)
    >>> with progress.bar("tokenise", total=2) as bar:
    ...     bar.advance()
    """

    def __init__(self, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._console: Console | None = None
        self._lines = Lines(lambda text: self.console.print(text, markup=False, soft_wrap=True), watch=not quiet)

    @property
    def quiet(self) -> bool:
        return self._quiet

    @property
    def console(self) -> Console:
        """The rich console that everything is written to; made when first needed."""
        if self._console is None:
            from rich.console import Console

            width = None if self._stream.isatty() else 110
            self._console = Console(
                file=self._stream, quiet=self._quiet, highlight=False, emoji=False, width=width
            )  # rows.jsonl:100: is a place, not an emoji
        return self._console

    def say(self, text: str) -> None:
        """One plain line."""
        self._lines.say(text)

    def warn(self, text: str) -> None:
        """One line of warning."""
        self._lines.last = time.monotonic()
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        text: Sequence[int] = (0,),
        whole: Sequence[int] = (),
    ) -> None:
        """A small table; the columns numbered in `text` are text, the others numbers.

        Cells of the columns in `whole`, such as ids to copy, are never broken.
        """
        from rich.table import Table
        from rich.text import Text as Cell

        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(
                column, justify="left" if index in text else "right", overflow="fold", no_wrap=index in whole
            )
        for row in rows:
            table.add_row(*map(Cell, row))  # as plain text: brackets are not markup
        self.console.print(table)

    def marked(self, title: str, runs: Sequence[tuple[bool, str]], *, letters: int = 1200) -> None:
        """A text with some runs marked: green on a terminal, between [[ and ]] elsewhere; cut where too long."""
        from rich.text import Text

        colours = self.console.is_terminal
        shown = Text()
        for is_marked, text in runs:
            left = letters - len(shown)
            part = text if len(text) <= left else f"{text[: max(0, left)]} ..."
            shown.append(part if colours or not is_marked else f"[[{part}]]", style="green" if is_marked else "")
            if len(text) > left:
                break
        self.console.print(title, style="bold", markup=False)
        self.console.print(shown, soft_wrap=True)

    def facts(self, facts: Mapping[str, str]) -> None:
        """A block of names and values, aligned."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            self.say(f"  {name:<{width}}  {value}")

    @property
    def live(self) -> bool:
        """Whether there is a terminal that may be drawn on."""
        wanted = not any(os.environ.get(name) for name in PLAIN) and os.environ.get("TERM") != "dumb"
        return self._stream.isatty() and not self._quiet and wanted

    @contextmanager
    def training(self, title: str, *, total: float) -> Iterator[TrainingBar]:
        """A training's progress: a panel on a terminal, plain lines elsewhere."""
        if not self.live:
            with self._lines.bar(title, total, "steps") as plain:
                yield plain
            return
        from mlflow_ft.progress import panel

        with panel.shown(self.console, title, total, "steps") as shown:
            yield shown

    @contextmanager
    def bar(self, title: str, *, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        """A bar for one piece of work; without a terminal, plain lines, so that nothing is silent for five seconds."""
        if not self.live:
            with self._lines.bar(title, total, unit) as plain:
                yield plain
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        count = "{task.completed:g}/{task.total:g} " + unit if total else ""
        columns = (  # 80 characters hold all of it
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            TextColumn(count),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True) if total else TextColumn(""),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self.console) as rich_progress:
            task = rich_progress.add_task(title, total=total, note="")

            class RichBar:
                def advance(self, steps: float = 1, *, note: str = "") -> None:
                    rich_progress.update(task, advance=steps)
                    if note:
                        rich_progress.update(task, note=note)

            yield RichBar()
            if not total:  # stop the bar that moved back and forth without a known length
                rich_progress.update(task, total=1, completed=1)
