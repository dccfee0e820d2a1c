"""Progress as plain lines: for logs, for CI, for `mlflow run`. Nothing is silent for more than five seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow_ft.progress.words import LATEST, Latest, duration

SILENCE = 5.0
"""Seconds after which a line is due."""
LONG, SILENCE_THEN = 600.0, 30.0
"""Work that goes on for ten minutes has a line in half a minute, so that a log of hours can be read."""
LOOK = 0.5
"""Seconds between two looks whether a line is due."""


class Lines:
    """Prints lines, and knows when the last one was printed and which work is going on.

    `watch`: whether work that says nothing has lines.
    """

    def __init__(self, write: Callable[[str], None], *, watch: bool = True) -> None:
        self._write, self._watches = write, watch
        self._bars: list[PlainBar] = []
        self.last = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        self.last = time.monotonic()
        self._write(text)

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[PlainBar]:
        """A line when work begins, when it has gone on for a while, and when it ends."""
        started = time.monotonic()
        self.say(f"{title} ...")
        bar = PlainBar(self, title, total, unit)
        self._bars.append(bar)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(bar, ended), name="progress", daemon=True)
        if self._watches:
            watch.start()
        try:
            yield bar
        finally:
            ended.set()
            if self._watches:
                watch.join()
            self._bars.remove(bar)
        if (seconds := time.monotonic() - started) >= 1:
            self.say(f"{title}: done in {seconds:.0f} s")

    def _watch(self, bar: PlainBar, ended: threading.Event) -> None:
        """Print a line whenever it is due, also while the work itself says nothing; only for the innermost work."""
        while not ended.wait(LOOK):
            if self._bars[-1] is bar and bar.is_due(time.monotonic() + LOOK):
                self.say(bar.line())


class PlainBar:
    """One piece of long work."""

    def __init__(self, lines: Lines, title: str, total: float | None, unit: str) -> None:
        self._lines, self._title, self._total, self._unit = lines, title, total, unit
        self._done = 0.0
        self._began = time.monotonic()
        self._note = ""
        self._values = Latest()
        self._latest: deque[tuple[float, float]] = deque(maxlen=LATEST)

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        """Add completed steps."""
        self._done += steps
        self._note = note or self._note
        now = time.monotonic()
        self._latest.append((now, self._done))
        if self.is_due(now):
            self._lines.say(self.line())

    def point(self, name: str, value: float, *, step: int) -> None:
        """A new value of a curve."""
        self._values.point(name, value, step=step)

    def fact(self, name: str, text: str) -> None:
        """What else is true now."""
        self._values.facts[name] = text

    def is_due(self, now: float) -> bool:
        """Whether there was no line for too long."""
        return now - self._lines.last >= (SILENCE if now - self._began < LONG else SILENCE_THEN)

    def line(self) -> str:
        """How far it is: `train: 15/40 steps loss 1.5, 25 s left`."""
        total = f"/{self._total:g}" if self._total else ""
        count = f"{self._done:g}{total} {self._unit} " if self._done or self._total else ""
        left = self._left() or f"{duration(time.monotonic() - self._began)} so far"
        notes = [self._note, *self._values.words(), left]
        return f"{self._title}: {count}{', '.join(filter(None, notes))}"

    def _left(self) -> str:
        """The remaining time at the pace of the latest steps; "" if it is unknown."""
        if not self._latest:
            return ""
        (start, before), (now, done) = self._latest[0], self._latest[-1]
        if not self._total or done <= before or now <= start or done >= self._total:
            return ""
        return f"{duration((self._total - done) * (now - start) / (done - before))} left"
