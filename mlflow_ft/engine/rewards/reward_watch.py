"""Whether the answers that are sampled can teach anything: rewards that differ, and answers that end by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_ft.config.methods import RolloutSection
from mlflow_ft.progress import Progress

PATIENCE = 10
"""Batches of answers in a row after which it is said."""
EQUAL = 1e-6
"""Rewards that differ by less, as a share of the largest, are equal."""


@dataclass
class Streak:
    """One thing that should not happen in every batch."""

    what: str
    remedy: str
    length: int = 0
    longest: int = 0
    batches: int = 0

    def see(self, *, happened: bool) -> bool:
        """Whether it has now happened often enough in a row to be said."""
        self.length = self.length + 1 if happened else 0
        self.batches += happened
        self.longest = max(self.longest, self.length)
        return self.length == PATIENCE and self.longest == PATIENCE


class RewardWatch:
    """Sees every batch of sampled answers, warns once of each thing, and says at the end how often it was so.

    >>> watch = RewardWatch(RolloutSection(), Progress(quiet=True))
    >>> for _ in range(10):
    ...     watch.see([[0.0, 0.0], [1.0, 1.0]], cut=[False, True, False, False])
    >>> watch.findings()
    ('in 10 of 10 sampled batches the answers that are compared had equal rewards: nothing was learned from them',)
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
        self._cut = Streak(
            what=f"every answer was cut at rollout.max_completion_length ({settings.max_completion_length} tokens): it "
            "was rewarded for its beginning, and no end of turn was learned",
            remedy="Raise rollout.max_completion_length; if the model never ends its turn, train it to do so (sft), or "
            "check its chat template and eos_token_id",
        )

    def see(self, groups: Sequence[Sequence[float | None]], *, cut: Sequence[bool]) -> None:
        """Take note of a batch.

        Args:
            groups: The rewards of answers that are compared with each other; None or NaN where there is none.
            cut: Of each answer whether it came to its longest length without an end.
        """
        self._seen += 1
        for streak, happened in ((self._equal, all(map(equal, groups))), (self._cut, bool(cut) and all(cut))):
            if streak.see(happened=happened):
                self._progress.warn(f"in {PATIENCE} sampled batches in a row {streak.what}. {streak.remedy}")

    def findings(self) -> tuple[str, ...]:
        """What was so for long, or in all batches of a short training; said in the terminal where it was not yet."""
        found = []
        for streak in (self._equal, self._cut):
            if streak.longest >= PATIENCE or (self._seen and streak.batches == self._seen):
                found.append(f"in {streak.batches} of {self._seen} sampled batches {streak.what}")
                if streak.longest < PATIENCE:
                    self._progress.warn(f"{found[-1]}. {streak.remedy}")
        return tuple(found)


def equal(rewards: Sequence[float | None]) -> bool:
    """Whether answers that are compared have one reward, as far as they have any."""
    known = [one for one in rewards if one is not None and not math.isnan(one)]
    if not known:
        return True
    return max(known) - min(known) <= EQUAL * max(map(abs, known))
