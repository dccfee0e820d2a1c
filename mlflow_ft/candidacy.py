"""What a promotion is decided by: a version with its evidence, and the one that has the alias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHOICE = ("loss", "preference_accuracy", "exact_match")
"""What a method that does not say what it is for is taken to be for, the first that there is."""
Rows = Mapping[str, Sequence[float | None]]


def aimed_at(aims: Sequence[str], *models: Rows) -> str | None:
    """The score by which models are compared: the first of `aims` that all of them have for each row, else another one.

    None where they have none in common.
    """
    names = (*aims, *CHOICE, *(models[0] if models else ()))
    return next((name for name in names if all(name in rows for rows in models)), None)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A registered version and all the evidence about it that its run has kept."""

    name: str
    version: int
    run_id: str
    model_id: str
    tags: Mapping[str, str]
    """The version's tags."""
    described: bool
    """Whether there is a model card: a README.md beside the model, or a description of the version."""
    status: str
    """Of the run: FINISHED, FAILED ...; empty where there is no such run."""
    ended_ms: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Of the run: `eval/tuned/loss`, `eval/base/loss`, `parity/merged/kl_mean` ..."""
    quality: Mapping[str, Any] | None
    """The report of the data checks (`data/quality.json`)."""
    eval_digest: str
    """Digest of the held-out rows that it was scored on."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """Of every guard set the digest of its rows; its scores are `GUARD/SCORE`."""
    rows: Mapping[str, tuple[float | None, ...]]
    """By score the value of every held-out row, in their order; of the scores that are means over rows."""
    base_rows: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """The same of the model that its training began with."""
    base: str = ""
    """What that model was, as a message names it."""
    aims: tuple[str, ...] = ()
    """The scores that its method is for, the first that there is; see `Trainer.scores`."""
    unscored: str = ""
    """Why there are no scores on the rows that are asked about, in a sentence."""

    def score(self, name: str, *, of: str = "tuned") -> float | None:
        """A score on the held-out rows, or another metric of the run by its whole name; None where there is none."""
        return self.metrics.get(f"eval/{of}/{name}", self.metrics.get(name) if of == "tuned" else None)


@dataclass(frozen=True, kw_only=True)
class Candidacy:
    """A version that is to get an alias, and the one that has it."""

    alias: str
    candidate: Contender
    champion: Contender | None
    """Its scores are on the candidate's held-out rows; None where nothing has the alias."""
    now_ms: int
