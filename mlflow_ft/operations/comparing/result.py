"""What the votes say: the win rate of the second model over the first, with ties as half."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.operations.comparing.pairs import EQUAL, SECOND, SKIPPED, Comparison

if TYPE_CHECKING:
    from mlflow_ft.tracking.votes import Vote

CONFIDENCE = 0.95
METRICS = "human/"
"""What the names of the metrics begin with: `human/win_rate`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The votes in numbers. Wins are those of the second model."""

    first: str
    second: str
    wins: int
    ties: int
    """With the identical answers."""
    losses: int
    identical: int
    """Pairs that nobody had to vote on, because the answers are the same: ties."""
    skipped: int
    left: int
    """Pairs without a vote."""
    voters: tuple[str, ...]
    win_rate: float
    low: float
    high: float

    @property
    def votes(self) -> int:
        """Those that people gave, without skips."""
        return self.wins + self.ties + self.losses - self.identical

    def metrics(self) -> dict[str, float]:
        """The numbers as metrics of the run."""
        named = {"win_rate": self.win_rate, "win_rate_low": self.low, "win_rate_high": self.high, "votes": self.votes}
        counts = {name: getattr(self, name) for name in ("wins", "ties", "losses", "identical", "skipped")}
        return {f"{METRICS}{name}": float(value) for name, value in (named | counts).items()}

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        more = {"voters": list(self.voters), "votes": self.votes, "confidence": CONFIDENCE}
        return {**asdict(self), **more, "sentence": self.sentence()}

    def sentence(self) -> str:
        """The result in one line."""
        rate = f"{self.win_rate:.1%} ({CONFIDENCE:.0%} interval {self.low:.1%} to {self.high:.1%})"
        return f"{self.second} wins {rate} against {self.first}, ties as half"

    def facts(self) -> dict[str, str]:
        """The counts in words."""
        given = f"{self.votes} ({self.wins} for {self.second}, {self.losses} for {self.first}, "
        given += f"{self.ties - self.identical} equal)"
        facts = {"votes": given}
        facts |= {"identical answers": f"{self.identical}, counted as ties"} if self.identical else {}
        return facts | {"skipped": str(self.skipped), "not voted on": str(self.left)}


def of(comparison: Comparison, votes: Mapping[str, Vote]) -> Result | None:
    """The result of the votes so far; None before somebody has voted."""
    from mlflow_ft.engine.judging.win_rate import win_rate

    given = _reached([votes.get(pair.trace_id) for pair in comparison.pairs])
    counts = Counter(vote.value for vote in given)
    wins, ties = counts[SECOND], counts[EQUAL]
    losses = len(given) - wins - ties - counts[SKIPPED]
    if not any(vote.human and vote.value != SKIPPED for vote in given):
        return None
    found = win_rate(wins=wins, ties=ties, losses=losses, confidence=CONFIDENCE)
    return Result(
        first=comparison.first.uri,
        second=comparison.second.uri,
        wins=wins,
        ties=ties,
        losses=losses,
        identical=sum(not vote.human for vote in given),
        skipped=counts[SKIPPED],
        left=len(comparison.pairs) - len(given),
        voters=tuple(sorted({vote.by for vote in given if vote.human})),
        win_rate=found.rate,
        low=found.low,
        high=found.high,
    )


def _reached(votes: Sequence[Vote | None]) -> list[Vote]:
    """The votes; where the end came early, without identical answers after the last pair that somebody saw."""
    seen = max((number for number, vote in enumerate(votes, 1) if vote and vote.human), default=0)
    return [vote for vote in votes[: seen if None in votes else None] if vote]
