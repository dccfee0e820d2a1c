"""The requests of one open run: made now, made when the server is back, or kept in the run's folder."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mlflow_ft.errors import UndeliveredError
from mlflow_ft.tracking.faults import REMEDIES, Fault, UnacceptedError
from mlflow_ft.tracking.journal import Entry
from mlflow_ft.tracking.outbox import Outbox, Place, make
from mlflow_ft.tracking.server import answers, insist

RETRY_SECONDS = 10.0
"""Between two attempts to deliver the outbox while the run goes on."""
T = TypeVar("T")
log = logging.getLogger(__name__)


class Requests:
    """Each request waits for a server that is away (`insist`). The first one that waited in vain opens the outbox:

    from then on `put` keeps what nobody needs the answer of, in order, until the server is back, and nothing waits
    again. Until `open_outbox` every request that is not accepted raises UnacceptedError.
    """

    def __init__(self, place: Place, *, uri: str, stopping: Callable[[], bool], clock: Callable[[], float]) -> None:
        self.early = True
        """Nothing was spent yet: an expired credential or a full artifact store ends the run."""
        self.unfinished = False
        """Whether `must` was not answered: stages of the run are left."""
        self._place, self._uri, self._stopping, self._clock = place, uri, stopping, clock
        self._outbox: Outbox | None = None
        self._continues = False
        self._order = threading.RLock()
        self._next_try = -math.inf

    def open_outbox(self, folder: Path, *, continues: bool) -> None:
        """Keep what is not accepted in `folder`; what an earlier process left there goes first."""
        self._place = replace(self._place, folder=folder)
        self._outbox, self._continues = Outbox(self._place), continues

    @property
    def waiting(self) -> int:
        """Number of requests in the outbox."""
        return self._outbox.pending if self._outbox else 0

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Return the answer to a request.

        Raises:
            UnacceptedError: the server is away, or does not accept it now. TrackingError: the request is wrong.
        """
        with self._order:
            seconds = None if self._caught_up() else 0.0
            try:
                return insist(what, call, uri=self._uri, seconds=seconds, stopping=self._stopping)
            except UnacceptedError:
                self._next_try = self._clock() + RETRY_SECONDS
                raise

    def must(self, what: str, call: Callable[[], T]) -> T:
        """Return an answer without which the run cannot go on.

        Raises:
            UndeliveredError: there is none; `mlflow-ft sync` finishes the run. TrackingError: as `ask`.
        """
        try:
            return self.ask(what, call)
        except UnacceptedError as error:
            if not self._continues or self.early:
                raise
            self.unfinished = True
            remedy = REMEDIES[error.fault] or "when the server is back"
            raise UndeliveredError(
                f"{error.message}. Everything so far is complete in {self._place.folder}",
                hint=f"{remedy}, then finish the run: mlflow-ft sync {self._place.folder}",
            ) from error

    def put(self, what: str, entry: Entry) -> None:
        """Make a request whose answer nobody needs, or keep it; earlier ones go first.

        Raises:
            UnacceptedError: it cannot be kept, because the run has no folder or has just begun.
        """
        with self._order:
            if self._outbox and not self._caught_up():
                self._outbox.add(entry)
                return
            try:
                self.ask(what, partial(make, entry, self._place))
            except UnacceptedError as error:
                if error.fault is not Fault.AWAY and self.early:
                    raise
                self.keep(entry, error)

    def keep(self, entry: Entry, error: UnacceptedError) -> None:
        """Keep a request that was not accepted; raises the error if there is no outbox."""
        if self._outbox is None:
            raise error
        with self._order:
            remedy = f". To do: {REMEDIES[error.fault]}" if REMEDIES[error.fault] else ""
            log.warning("%s; it is kept in %s%s", error.message, self._place.folder, remedy)
            self._outbox.add(entry)

    def close(self, *, deliver: bool) -> int:
        """Try to deliver the outbox once more, and return how many requests are left in it."""
        with self._order:
            if deliver and self.waiting:
                self._try()
            left, self._outbox = self.waiting, None
            return left

    def _caught_up(self) -> bool:
        """Whether nothing waits in the outbox; if something does, its delivery is tried every few seconds."""
        if not self.waiting:
            return True
        if self._clock() < self._next_try:
            return False
        self._next_try = self._clock() + RETRY_SECONDS
        return self._try()

    def _try(self) -> bool:
        if self._outbox is None or not answers(self._uri):
            return False
        try:
            self._outbox.deliver()
        except Exception as error:  # whatever the error, the requests are kept
            log.debug("the outbox in %s: %s", self._place.folder, error)
            return False
        log.warning("the tracking server accepts everything again")
        return True
