"""A vote: which pair is next, what was chosen, what was taken back. Everything here is blind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.comparing.pairs import EQUAL, SKIPPED, Pair

if TYPE_CHECKING:
    from mlflow_ft.operations.comparing.result import Result
    from mlflow_ft.tracking.votes import Vote

ALIKE = "identical answers"
"""The source of a vote that no person gave."""
ENDED = "the comparison was finished in another tab; its result is in the terminal"


class Votes(Protocol):
    """Where votes are kept at once; both methods raise TrackingError if they are not."""

    def cast(self, trace_id: str, vote: Vote) -> None: ...

    def withdraw(self, trace_id: str) -> None: ...


@dataclass
class Session:
    """The votes on some pairs, one after another, from any number of tabs and threads."""

    pairs: Sequence[Pair]
    votes: dict[str, Vote]
    """By trace; those that are kept already."""
    store: Votes
    by: str
    end: Callable[[], Result | None]
    """Counts the votes and keeps the result; None where nobody has voted."""
    needed: int | None = None
    """After so many votes, without skips, nothing more is asked."""
    clock: Callable[[], float] = time.time
    result: Result | None = None
    """Set when somebody has asked for it: nothing is voted on after that."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        known = {pair.trace_id for pair in self.pairs}
        self.votes = {trace: vote for trace, vote in self.votes.items() if trace in known}

    @property
    def human(self) -> int:
        """How many votes people gave, without skips."""
        return sum(vote.human and vote.value != SKIPPED for vote in self.votes.values())

    @property
    def complete(self) -> bool:
        """Whether nothing is left to ask."""
        return self._next() is None

    def view(self) -> Mapping[str, Any]:
        """What the page shows: the next pair, or that there is none. It names no model."""
        with self._lock:
            return self._view()

    def finish(self) -> Mapping[str, Any]:
        """The result for the page, with the names.

        Raises:
            ConfigError: nobody has voted. TrackingError: the result could not be kept.
        """
        with self._lock:
            self.result = self.result or self.end()
            if self.result is None:
                raise ConfigError("nobody has voted yet")
            return self.result.as_dict() | {"facts": self.result.facts()}

    def _view(self, notice: str = "") -> dict[str, Any]:
        number, last = self._next(), self._last()
        shown = {
            "pair": number,
            "last": last,
            "voted": self.human,
            "skipped": sum(vote.value == SKIPPED for vote in self.votes.values()),
            "left_to_vote": self._left(),
            "notice": notice,
        }
        if number is None:
            return shown
        pair = self.pairs[number]
        left, right = pair.shown
        return shown | {"prompt": list(pair.prompt.messages), "left": left, "right": right}

    def vote(self, number: int, choice: str) -> Mapping[str, Any]:
        """Keep a choice if this pair is the next one, and show what is next.

        Raises:
            TrackingError: the vote could not be kept.
        """
        with self._lock:
            if self.result:
                return self._view(ENDED)
            if number != self._next():
                return self._view("this pair was voted on in another tab; here is the next one")
            pair = self.pairs[number]
            self._keep(pair, pair.winner(choice), by=self.by)
            return self._view()

    def undo(self, number: int) -> Mapping[str, Any]:
        """Take a vote back if it is the last one, and show its pair again.

        Raises:
            TrackingError: the vote is still there.
        """
        with self._lock:
            if self.result:
                return self._view(ENDED)
            if number != self._last():
                return self._view("another tab has voted since; nothing was taken back")
            trace = self.pairs[number].trace_id
            self.store.withdraw(trace)
            del self.votes[trace]
            return self._view()

    def _next(self) -> int | None:
        """The first pair without a vote; identical answers that come before it are equal without anybody's vote."""
        with self._lock:
            for number, pair in enumerate(self.pairs):
                if self.needed is not None and self.human >= self.needed:
                    return None
                if pair.trace_id not in self.votes:
                    if not pair.alike:
                        return number
                    self._keep(pair, EQUAL, by=ALIKE, human=False)
            return None

    def _last(self) -> int | None:
        numbers = {pair.trace_id: number for number, pair in enumerate(self.pairs)}
        given = [(vote.at_ms, numbers[trace]) for trace, vote in self.votes.items() if vote.human]
        return max(given)[1] if given else None

    def _left(self) -> int:
        rest = sum(not pair.alike and pair.trace_id not in self.votes for pair in self.pairs)
        return rest if self.needed is None else min(rest, max(0, self.needed - self.human))

    def _keep(self, pair: Pair, value: str, *, by: str, human: bool = True) -> None:
        from mlflow_ft.tracking.votes import Vote

        vote = Vote(value=value, by=by, at_ms=int(self.clock() * 1000), human=human)
        self.store.cast(pair.trace_id, vote)
        self.votes[pair.trace_id] = vote
