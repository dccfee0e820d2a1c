"""A model's answers and scores, and whether it is worse than its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlflow_ft.progress import Progress
from mlflow_ft.rows import Message
from mlflow_ft.values.data import Data
from mlflow_ft.values.job import Run

if TYPE_CHECKING:
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one held-out prompt, with the expected answer."""

    prompt: tuple[Message, ...]
    """What the model was asked."""
    expected: str
    """The row's own answer; empty where it has none."""
    text: str
    """What the model answered, without special tokens."""
    finished: bool
    """Whether the model ended its turn within `evaluation.max_new_tokens`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of a prompt's row, for reward functions."""

    @property
    def asked(self) -> str:
        """The prompt for a table, without the system prompt."""
        return "\n\n".join(str(turn.get("content")) for turn in self.prompt if turn["role"] != "system")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number about a model, with the value of every row if it is a mean over rows.

    A row that could not be scored is None: it counts in `coverage`, never as zero.
    """

    name: str
    """The metric is `eval/tuned/NAME`. Higher is better, unless the name ends in `loss` or `perplexity`."""
    value: float
    """NaN where nothing could be scored."""
    rows: tuple[float | None, ...] = ()
    """One value per held-out row, in their order; needed to compare two models row by row."""
    guard: str = ""
    """The guard set of the score; empty for the held-out rows. Set by the stage."""
    lower_is_better: bool | None = None
    """None: as its evaluator's record says (`Evaluator.lower_is_better`), or else its name."""
    digest: str = ""
    """Identifies the rows of a score that is on rows of its own, such as a benchmark's, and how they were asked: two
    models are compared by it only where it is the same. Empty: on the held-out rows, or on the guard set."""
    measured_by: str = ""
    """What gave the score, if another run may have it from something else: a judge and its rubric. Two models are
    compared by it only where it is the same. Empty: any run measures it in the same way."""

    @classmethod
    def mean(cls, name: str, rows: Sequence[float | None]) -> Score:
        """The mean over the rows that could be scored; NaN if there are none."""
        scored = [row for row in rows if row is not None]
        value = sum(scored) / len(scored) if scored else float("nan")
        return cls(name=name, value=value, rows=tuple(rows))

    def is_lower(self, gates: Gates) -> bool:
        """Whether the score is better when it is lower: by the gates, by what it says itself, or by its name."""
        said = None if self.name in gates.lower_is_better else self.lower_is_better
        return gates.lower(self.name) if said is None else said

    @property
    def coverage(self) -> float:
        """The share of rows that could be scored, 0 to 1."""
        return sum(row is not None for row in self.rows) / len(self.rows) if self.rows else 1.0


class Subject(Protocol):
    """A model under evaluation, as an evaluator sees it."""

    name: Literal["base", "tuned"]
    """Which model this is."""
    data: Data
    """`data.eval` is the held-out side."""
    config: Config
    """Every setting; those of a plugin are `config.options(ItsOptions)`."""

    @property
    def model(self) -> Any:
        """The loaded model in evaluation mode, a `transformers.PreTrainedModel`, or a `peft.PeftModel` with its adapter
        switched on; `data.tokenizer` is its tokenizer. Change nothing in it and keep no reference: it is released when
        the evaluators have run."""

    @property
    def run(self) -> Run | None:
        """The MLflow run, to log tables and files. None where nothing is logged: when a promotion scores a champion."""

    @property
    def progress(self) -> Progress:
        """Output to the terminal."""

    @property
    def base_answers(self) -> Sequence[Answer]:
        """The base model's answers to the same prompts, its own for the base; empty where they are not known.

        On a guard set they are known if an evaluator asked for them when it scored the base.
        """

    @cached_property
    def answers(self) -> Sequence[Answer]:
        """Greedy answers to the held-out prompts, at most `evaluation.max_rows`."""

    @cached_property
    def losses(self) -> Sequence[tuple[float, int]]:
        """For every held-out row, the summed negative log-likelihood (nats) and the number of supervised tokens."""

    @cached_property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """For every held-out preference, the model's rating of the chosen and of the rejected answer: the summed
        log-likelihood (nats), or the score of a reward model; empty if there are no preferences."""

    @cached_property
    def rewards(self) -> Mapping[str, Sequence[float | None]]:
        """For every reward function (`rollout.reward_funcs`) and the reward model, its value for each of `answers`."""

    @cached_property
    def weighted_reward(self) -> Sequence[float | None]:
        """For each of `answers`, the weighted sum of all rewards, which training maximised."""


@dataclass(frozen=True, kw_only=True)
class Worse:
    """The finding that the tuned model is worse than its base."""

    score: str
    sure: bool
    """Whether it is significant; if not, it is only reported."""
    sentence: str
    """The message, with the numbers."""
    broken: bool = False
    """The loss is NaN or infinite: nothing can be measured."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The held-out scores of the base model and of the tuned one."""

    base: tuple[Score, ...]
    tuned: tuple[Score, ...]
    answers: tuple[tuple[Answer, Answer], ...]
    """For every held-out prompt, the answers of the base model and the tuned model."""
    worse: Worse | None = None
