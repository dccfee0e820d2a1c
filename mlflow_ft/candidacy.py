"""The evidence for a promotion: a version, and the one that has the alias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_ft.config.gates import Gates

CHOICE = ("loss", "preference_accuracy", "exact_match")
"""Default scores of a method that names none: the first that exists."""
Rows = Mapping[str, Sequence[float | None]]


def aimed_at(aims: Sequence[str], *models: Rows) -> str | None:
    """The score to compare models by: the first of `aims` that all of them have for each row, else another score.

    None where they have none in common.
    """
    names = (*aims, *CHOICE, *(models[0] if models else ()))
    return next((name for name in names if all(name in rows for rows in models)), None)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A registered version and all evidence about it from its run."""

    name: str
    """The registered model."""
    version: int
    run_id: str
    model_id: str
    """MLflow's id of the logged model."""
    tags: Mapping[str, str]
    """The version's tags."""
    described: bool
    """Whether there is a model card: a README.md with the model, or a description of the version."""
    status: str
    """The run's status: FINISHED, FAILED ...; empty where the run does not exist."""
    ended_ms: int | None
    """When the run ended, in milliseconds since 1970; None: it has not."""
    params: Mapping[str, str]
    """Every setting of the run: `cfg.training.learning_rate`."""
    metrics: Mapping[str, float]
    """The run's metrics: `eval/tuned/loss`, `eval/base/loss`, `parity/merged/kl_mean` ..."""
    quality: Mapping[str, Any] | None
    """The report of the data checks (`data/quality.json`)."""
    eval_digest: str
    """Digest of the held-out rows that it was scored on."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """The digest of each guard set's rows; its scores are `GUARD/SCORE`."""
    rows: Mapping[str, tuple[float | None, ...]]
    """For each score that is a mean over rows, the value of every held-out row, in their order."""
    base_rows: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """The same for the model that its training started from."""
    base: str = ""
    """That model's name in messages."""
    answers: tuple[Mapping[str, str], ...] = ()
    """For each held-out prompt that was answered: `prompt`, `expected`, `base` and `tuned`, the last two the answers of
    the model its training started from and its own."""
    aims: tuple[str, ...] = ()
    """Its method's own scores, in order of preference; see `Trainer.scores`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """For each score that is on rows of its own, such as a benchmark's, their digest."""
    measured_by: Mapping[str, str] = field(default_factory=dict)
    """For each score that a judge gave, the judge and its rubric."""
    lower_is_better: Mapping[str, bool] = field(default_factory=dict)
    """For each score that says so itself, whether it is better when it is lower."""
    unscored: str = ""
    """Why there are no scores on the candidate's held-out rows, in a sentence."""

    def score(self, name: str, *, of: str = "tuned") -> float | None:
        """A score on the held-out rows, or another metric of the run by its full name; None where there is none."""
        return self.metrics.get(f"eval/{of}/{name}", self.metrics.get(name) if of == "tuned" else None)


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The newest comparison of the candidate with the champion by people who did not know whose an answer was.

    Both are these very versions, with these very weights.
    """

    run_id: str = ""
    """The run with the votes."""
    wins: int = 0
    """Of the candidate."""
    ties: int = 0
    """With identical answers, which nobody had to see."""
    losses: int = 0
    votes: int = 0
    """Those that people gave, without skips."""
    counted: tuple[int, ...] = ()
    """The numbers of votes after which the result was shown; more than one: votes went on after that."""
    comparisons: int = 1
    """How many of the two there are."""
    unusable: str = ""
    """Why it is no evidence, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Candidacy:
    """A version that may get an alias, and the one that has it."""

    alias: str
    """The alias that would be moved: `champion`."""
    candidate: Contender
    """The version that is judged."""
    champion: Contender | None
    """Its scores are on the candidate's held-out rows; None where nothing has the alias."""
    preference: Preference | None = None
    """What people said, if the gates ask for it; None where nobody has compared the two."""
    now_ms: int
    """When the promotion was asked for, in milliseconds since 1970."""

    def lower(self, score: str, gates: Gates) -> bool:
        """Whether a score is better when it is lower: by the gates, by what its evaluator said, or by its name."""
        if score in gates.lower_is_better:
            return True
        return self.candidate.lower_is_better.get(score, gates.lower(score))
