"""What a promotion asks for: small frozen sections, read from one YAML file.

min_scores: {exact_match: 0.9}
beats_champion: {metric: loss, margin: 0.01, confidence: 0.95}
max_regression: {valid_json: 0.0}
max_age_days: 30
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from mlflow_ft.config.explain import shown
from mlflow_ft.config.section import Section
from mlflow_ft.errors import ConfigError, Problem, brief

LOWER = ("loss", "perplexity", "kl_mean", "kl_max")
"""Ends of the names of scores that are better when they are lower."""
Requirement = Literal["finished", "parity", "data-checks", "card"]


class BeatsChampion(Section):
    """The paired test against the present champion, on the same held-out rows."""

    metric: str = "auto"
    """A score with a value for each row; auto: the first of `CHOICE` that the candidate has."""
    margin: float = Field(default=0.0, ge=0)
    """By how much the candidate must be better, in the unit of the score."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure the test must be that the difference is above the margin."""
    samples: int = Field(default=10_000, ge=1000, le=1_000_000)
    """Bootstrap samples over the rows."""


class Gates(Section):
    """The settings of every gate. What is not set is not asked, but for what has a default here."""

    names: list[str] | None = None
    """Registered gates to hold the version to; all of them when not given."""
    require: list[Requirement] = Field(default_factory=lambda: [*get_args(Requirement)])
    """Gates that are passed or not: the run FINISHED, parity within its limit, no error in the data, a model card."""
    min_scores: dict[str, float] = Field(default_factory=dict)
    """Score to the least that it may be: `{exact_match: 0.9}`."""
    max_scores: dict[str, float] = Field(default_factory=dict)
    """Score to the most that it may be: `{loss: 1.2}`."""
    beats_champion: BeatsChampion | None = BeatsChampion()
    """The paired test; `null`: no test."""
    max_regression: dict[str, float] = Field(default_factory=dict)
    """Score to how much worse than the champion it may be; of the base model where there is no champion yet."""
    max_age_days: float | None = Field(default=None, gt=0)
    """How long ago the run may have ended."""
    lower_is_better: list[str] = Field(default_factory=list)
    """Scores of your own that are better when they are lower; those that end in `loss` or `perplexity` are known."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings for the gates of plugins, by the gate's name."""

    def lower(self, metric: str) -> bool:
        """Whether a score is better when it is lower."""
        return metric in self.lower_is_better or metric.endswith(LOWER)


def read_gates(text: str, *, place: str) -> Gates:
    """The gates that a YAML text asks for; `place` is what messages call it.

    Raises:
        ConfigError: it is no YAML mapping, or asks for what there is not; every problem is told.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is no YAML: {brief(error)}", hint="see docs/promotion.md") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{place} is no mapping of gates", hint="write for instance `min_scores: {exact_match: 0.9}`")
    try:
        gates = Gates.model_validate(found)
    except ValidationError as error:
        problems = [_problem(place, dict(detail)) for detail in error.errors()]
        raise ConfigError(f"{len(problems)} problems in {place}", problems=problems) from error
    wrong = [name for name in gates.min_scores if gates.lower(name)]
    if wrong:
        raise ConfigError(
            f"{place}: min_scores has {', '.join(wrong)}, which is better when it is lower",
            hint=f"write max_scores: {{{wrong[0]}: {gates.min_scores[wrong[0]]:g}}}",
        )
    return gates


def gates_file(path: Path) -> Gates:
    """The gates that a file asks for.

    Raises:
        ConfigError: it cannot be read, or as `read_gates`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path} ({type(error).__name__})", hint="name a YAML file of gates") from error
    return read_gates(text, place=str(path))


def _problem(place: str, detail: dict[str, Any]) -> Problem:
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        section = BeatsChampion if path[0] == "beats_champion" and len(path) > 1 else Gates
        near = difflib.get_close_matches(path[-1], section.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(section.model_fields)}"
        return Problem(place=f"{place}  {'.'.join(path)}", message="unknown key", hint=hint)
    return Problem(place=f"{place}  {'.'.join(path)}", message=f"{shown(detail['input'])}: {detail['msg']}")
