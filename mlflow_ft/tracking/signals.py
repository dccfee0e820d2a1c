"""Signals as exceptions: SIGTERM and SIGINT raise StoppedError, at once or when it is safe to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mlflow_ft import processes
from mlflow_ft.errors import ProcessError, StoppedError


class StopSignals:
    """The signal received, and whether a signal raises now.

    The first signal raises StoppedError, unless it comes inside `deferring()`: then it only sets `received`, and
    leaving that block raises. A second signal always raises.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals for the duration of a block; Python allows it in the main thread only."""
        with processes.handling_stops(self._handle):
            yield

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Hold the first signal back until the block is left."""
        with self.holding():
            yield
        self.check()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Like `deferring`, but leaving the block does not raise."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1

    def check(self) -> None:
        """Raise StoppedError if a signal was received."""
        if self.received is not None:
            raise StoppedError(self.received)

    def instead_of(self, error: BaseException) -> StoppedError | ProcessError | None:
        """What to raise instead of an error after a signal: libraries wrap a signal's error in errors of their own.

        A signal that follows the loss of a process, while that error is on its way, is torchrun's: the loss remains.
        """
        earlier = error.__context__
        if isinstance(error, StoppedError) and isinstance(earlier, ProcessError):
            return earlier
        if self.received is None or isinstance(error, StoppedError | ProcessError | KeyboardInterrupt):
            return None
        return StoppedError(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, self.received or number
        if not (first and self._deferring):
            raise StoppedError(number)
