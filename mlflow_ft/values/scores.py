"""What a model answers and how good it is: answers, scores, and which of two models is worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from mlflow_ft.rows import Message
from mlflow_ft.values.data import Data


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one held-out prompt, beside what was expected."""

    prompt: tuple[Message, ...]
    expected: str
    text: str
    finished: bool
    """Whether the model ended its turn by itself, within `evaluation.max_new_tokens`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of a prompt's row, for reward functions."""

    @property
    def asked(self) -> str:
        """The prompt as a table shows it, without the system prompt."""
        return "\n\n".join(str(turn.get("content")) for turn in self.prompt if turn["role"] != "system")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number about a model, with the value of every row where it is a mean over rows.

    A row that could not be scored is None: it counts in `coverage`, never as a zero, never silently.
    """

    name: str
    value: float
    rows: tuple[float | None, ...] = ()
    guard: str = ""
    """The guard set that it was found on; empty for the held-out rows. Set by the stage."""

    @classmethod
    def mean(cls, name: str, rows: Sequence[float | None]) -> Score:
        """The mean over the rows that could be scored; NaN where there is none."""
        scored = [row for row in rows if row is not None]
        value = sum(scored) / len(scored) if scored else float("nan")
        return cls(name=name, value=value, rows=tuple(rows))

    @property
    def coverage(self) -> float:
        """Share of rows that could be scored, 0 to 1."""
        return sum(row is not None for row in self.rows) / len(self.rows) if self.rows else 1.0


class Subject(Protocol):
    """A model under evaluation, as an evaluator sees it."""

    name: Literal["base", "tuned"]
    data: Data

    @cached_property
    def answers(self) -> Sequence[Answer]:
        """Greedy answers to the held-out prompts, at most `evaluation.max_rows`."""

    @cached_property
    def losses(self) -> Sequence[tuple[float, int]]:
        """For every held-out row the summed negative log-likelihood (nats) and the number of supervised tokens."""

    @cached_property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """Of every held-out preference how good the model finds the chosen and the rejected answer: the summed
        log-likelihood (nats) of either, or the score that a reward model gives it; empty where there are none."""

    @cached_property
    def rewards(self) -> Mapping[str, Sequence[float | None]]:
        """Of every reward function (`rollout.reward_funcs`) and of the reward model its value for each of `answers`."""

    @cached_property
    def weighted_reward(self) -> Sequence[float | None]:
        """For each of `answers` the sum of all rewards, each with its weight: what the training went by."""


@dataclass(frozen=True, kw_only=True)
class Worse:
    """That the tuned model is worse than its base."""

    score: str
    sure: bool
    """Beyond chance; else it is said, and nothing follows."""
    sentence: str
    """With the numbers."""
    broken: bool = False
    """NaN or infinite: nothing can be measured of it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The held-out scores of the base model and of the tuned one."""

    base: tuple[Score, ...]
    tuned: tuple[Score, ...]
    answers: tuple[tuple[Answer, Answer], ...]
    """Of every held-out prompt the base model's answer and the tuned one's."""
    worse: Worse | None = None
