"""Watch whether sampled answers can teach anything: rewards must differ, and answers must end before they are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_ft.config.methods import RolloutSection
from mlflow_ft.progress import Progress

PATIENCE = 10
"""Batches in a row after which a warning is printed."""
EQUAL = 1e-6
"""Rewards that differ by less, as a share of the largest, are equal."""


@dataclass
class Streak:
    """A problem that should not occur in every batch."""

    what: str
    remedy: str
    length: int = 0
    longest: int = 0
    batches: int = 0

    def see(self, *, happened: bool) -> bool:
        """Whether it has now occurred in enough batches in a row for a warning."""
        self.length = self.length + 1 if happened else 0
        self.batches += happened
        self.longest = max(self.longest, self.length)
        return self.length == PATIENCE and self.longest == PATIENCE


class RewardWatch:
    """Sees every batch of sampled answers, warns once of each problem, and reports at the end how often it occurred.

    >>> watch = RewardWatch(RolloutSection(), Progress(quiet=True))
    >>> for _ in range(10):
    ...     watch.see([[0.0, 0.0], [1.0, 1.0]], cut=[False, True, False, False])
    >>> watch.findings()
    ('in 10 of 10 sampled batches the compared answers had equal rewards: nothing was learned from them',)
    """

    def __init__(self, settings: RolloutSection, progress: Progress) -> None:
        self._progress = progress
        self._seen = 0
        several = settings.num_generations > 1
        self._equal = Streak(
            what="the compared answers had equal rewards: nothing was learned from them",
            remedy="Give partial rewards; use prompts that the model sometimes answers well; raise "
            "rollout.temperature" + (" or rollout.num_generations" if several else ""),
        )
        self._none = Streak(
            what="no answer had a reward: the reward functions returned None or NaN for all of them",
            remedy="Call the functions with an answer of your own",
        )
        self._cut = Streak(
            what=f"every answer was cut at rollout.max_completion_length ({settings.max_completion_length} tokens): it "
            "was rewarded for its beginning, and no end of turn was learned",
            remedy="Raise rollout.max_completion_length; if the model never ends its turn, train it to do so (sft), or "
            "check its chat template and eos_token_id",
        )

    @property
    def _streaks(self) -> tuple[Streak, ...]:
        return self._equal, self._cut, self._none

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what was seen so far."""
        counts = [[streak.length, streak.longest, streak.batches] for streak in self._streaks]
        return {"seen": self._seen, "streaks": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._seen = state["seen"]
        for streak, counts in zip(self._streaks, state["streaks"], strict=False):  # earlier releases counted two
            streak.length, streak.longest, streak.batches = counts

    def see(self, groups: Sequence[Sequence[float | None]], *, cut: Sequence[bool]) -> None:
        """Record a batch.

        Args:
            groups: The rewards of answers that are compared with each other; None or NaN if an answer has none.
            cut: For each answer, whether it reached the maximum length without an end.
        """
        self._seen += 1
        none = not any(map(_known, groups))
        happening = (not none and all(map(equal, groups)), bool(cut) and all(cut), none)
        for streak, happened in zip(self._streaks, happening, strict=True):
            if streak.see(happened=happened):
                self._progress.warn(f"in {PATIENCE} sampled batches in a row {streak.what}. {streak.remedy}")

    def findings(self) -> tuple[str, ...]:
        """Problems that lasted long, or through a short training; prints a warning for those not yet reported."""
        findings = []
        for streak in self._streaks:
            if streak.longest >= PATIENCE or (self._seen and streak.batches == self._seen):
                findings.append(f"in {streak.batches} of {self._seen} sampled batches {streak.what}")
                if streak.longest < PATIENCE:
                    self._progress.warn(f"{findings[-1]}. {streak.remedy}")
        return tuple(findings)


def equal(rewards: Sequence[float | None]) -> bool:
    """Whether the rewards of compared answers are equal, ignoring missing ones."""
    known = _known(rewards)
    if not known:
        return True
    return max(known) - min(known) <= EQUAL * max(map(abs, known))


def _known(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None and not math.isnan(reward)]
