"""Progress for people: rich bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_SECONDS = 15.0
LATEST = 20
"""Steps from whose pace the remaining time follows."""
MINUTES_FROM = 100
"""Seconds from which a time is in minutes."""


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        """Add `steps` completed steps; `note` is shown after the bar."""


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

    @property
    def quiet(self) -> bool:
        return self._quiet

    @property
    def console(self) -> Console:
        """The rich console that everything is written to; made when first needed."""
        if self._console is None:
            from rich.console import Console

            width = None if self._stream.isatty() else 110
            self._console = Console(file=self._stream, quiet=self._quiet, highlight=False, width=width)
        return self._console

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line of warning."""
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)
    ) -> None:
        """A small table; the columns numbered in `text` are text, the others numbers."""
        from rich.table import Table
        from rich.text import Text as Cell

        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index in text else "right", overflow="fold")
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

    @contextmanager
    def bar(self, title: str, *, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        """A bar for one piece of work; without a terminal, plain lines, at most one in fifteen seconds."""
        if self._quiet or not self._stream.isatty():
            with _plain_bar(self, title, total, unit) as plain:
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


class _PlainBar:
    def __init__(self, progress: Progress, title: str, total: float | None, unit: str) -> None:
        self._progress, self._title, self._total, self._unit = progress, title, total, unit
        self._done = 0.0
        self._last_line = time.monotonic()
        self._latest: deque[tuple[float, float]] = deque(maxlen=LATEST)

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        self._latest.append((now, self._done))
        if now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            total = f"/{self._total:g}" if self._total else ""
            notes = ", ".join(filter(None, [note, self._left()]))
            self._progress.say(f"{self._title}: {self._done:g}{total} {self._unit} {notes}".rstrip())

    def _left(self) -> str:
        """The remaining time at the pace of the latest steps; "" if it is unknown."""
        (start, before), (now, done) = self._latest[0], self._latest[-1]
        if not self._total or done <= before or now <= start or done >= self._total:
            return ""
        return f"{duration((self._total - done) * (now - start) / (done - before))} left"


def duration(seconds: float) -> str:
    """A time in few words.

    >>> duration(48), duration(600), duration(9000)
    ('48 s', '10 min', '2 h 30 min')
    """
    if seconds < MINUTES_FROM:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def _plain_bar(progress: Progress, title: str, total: float | None, unit: str) -> Iterator[Bar]:
    started = time.monotonic()
    progress.say(f"{title} ...")
    yield _PlainBar(progress, title, total, unit)
    if (seconds := time.monotonic() - started) >= 1:
        progress.say(f"{title}: done in {seconds:.0f} s")
