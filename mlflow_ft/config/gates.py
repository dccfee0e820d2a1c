"""What a promotion requires: small frozen sections, read from one YAML file; unknown keys are refused.

min_scores: {exact_match: 0.9}
beats_champion: {metric: loss, margin: 0.01, confidence: 0.95}
max_regression: {valid_json: 0.0}
max_age_days: 30
waive: {beats-base: the base model cannot do this task at all}
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from mlflow_ft.config.explain import members, own_words, shown
from mlflow_ft.config.given import headline, syntax_error
from mlflow_ft.config.section import Section
from mlflow_ft.errors import ConfigError, Problem, brief

EXAMPLE = "for example `min_scores: {exact_match: 0.9}`; see docs/promotion.md"
LOWER = ("loss", "perplexity", "kl_mean", "kl_max")
"""Endings of the names of scores that are better when they are lower."""
HIGHER_DESPITE_NAME = ("bad_loss",)
"""Endings of the exceptions: answers labelled bad should become unlikely."""
LETTERS = 5
"""The fewest letters of a reason."""
Requirement = Literal["finished", "parity", "data-checks", "card"]


def lower_is_better(score: str, own: Collection[str] = ()) -> bool:
    """Whether a score is better when it is lower; `own` are further names for which that is true."""
    if any(score == name or score.endswith(f"/{name}") for name in own):
        return True
    return score.endswith(LOWER) and not score.endswith(HIGHER_DESPITE_NAME)


class PairedTest(Section):
    """A comparison with another model on the same held-out rows, row by row."""

    metric: str | list[str] = "auto"
    """A score with a value for each row, or several, which must all pass; auto: the method's own score."""
    margin: float = Field(default=0.0, ge=0)
    """By how much the candidate must be better, in the unit of the score."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence that the difference is above the margin; over all scores together, where there are several."""
    min_rows: int = Field(default=30, ge=1)
    """With fewer rows the test does not pass. A lower number does not make the test itself any less strict."""
    samples: int = Field(default=10_000, ge=1000, le=1_000_000)
    """Number of random subsets of the rows, where there are too many subsets to try all."""

    @field_validator("metric", mode="before")
    @classmethod
    def _names_scores(cls, metric: Any) -> Any:
        names = [metric] if isinstance(metric, str) else metric
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("takes the name of a score, or a list of names")
        return metric

    @property
    def metrics(self) -> list[str]:
        """Each score once."""
        return list(dict.fromkeys([self.metric] if isinstance(self.metric, str) else self.metric))


class BeatsChampion(PairedTest):
    """The paired test against the present champion."""


class BeatsBase(PairedTest):
    """The paired test against the model that training started from."""

    always: bool = False
    """Test against the base model even where there is a champion."""


class PreferredByPeople(Section):
    """The blind comparison with the present champion: `mlflow-ft compare`."""

    at_least: float = Field(default=0.5, ge=0, lt=1)
    """The win rate over the champion, with ties as half, that the candidate must surely reach."""
    votes: int = Field(default=30, ge=1)
    """With fewer votes of people, without skips, the gate does not pass."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence that the win rate is `at_least` so high."""


class Gates(Section):
    """The settings of every gate. A gate whose settings are not given and have no default does not apply."""

    names: list[str] | None = None
    """Registered gates that the version must pass; all when not given. `beats-base` always applies."""
    require: list[Requirement] = Field(default_factory=lambda: [*get_args(Requirement)])
    """Pass-or-fail gates: the run FINISHED, parity within its limit, no error in the data, a model card."""
    min_scores: dict[str, float] = Field(default_factory=dict)
    """Smallest value of each score: `{exact_match: 0.9}`."""
    max_scores: dict[str, float] = Field(default_factory=dict)
    """Largest value of each score: `{loss: 1.2}`."""
    beats_champion: BeatsChampion | None = BeatsChampion()
    """The paired test against the present champion; `null`: no test."""
    beats_base: BeatsBase = BeatsBase()
    """The paired test against the base model, for a first champion; left out only where it is waived."""
    preferred_by_people: PreferredByPeople | None = None
    """The win rate over the champion in a blind comparison by people."""
    max_regression: dict[str, float] = Field(default_factory=dict)
    """How much worse than the champion each score may be; than the base model where there is no champion yet."""
    max_age_days: float | None = Field(default=None, gt=0)
    """How long ago the run may have ended."""
    lower_is_better: list[str] = Field(default_factory=list)
    """Your own scores that are better when they are lower; scores ending in `loss` or `perplexity` already are."""
    waive: dict[str, str] = Field(default_factory=dict)
    """Gates that need not pass, each with a reason, which is recorded: `{beats-base: WHY}`."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings for the gates of plugins, by the gate's name."""

    @field_validator("beats_base", mode="before")
    @classmethod
    def _is_not_left_out(cls, value: Any) -> Any:
        if value is None or value is False:
            raise ValueError(
                "a first champion must beat its base; to do without, waive it with a reason: waive: {beats-base: WHY}"
            )
        return value

    @field_validator("waive")
    @classmethod
    def _has_reasons(cls, waive: dict[str, str]) -> dict[str, str]:
        for name, reason in waive.items():
            if sum(letter.isalpha() for letter in reason) < LETTERS:
                raise ValueError(f"{name}: {reason!r} is not a reason; explain why it need not pass")
        return waive

    def lower(self, metric: str) -> bool:
        """Whether a score is better when it is lower, also on a guard set."""
        return lower_is_better(metric, self.lower_is_better)

    def knowing(self, lower: Iterable[str]) -> Gates:
        """These settings, with further scores that are better when they are lower."""
        return self.model_copy(update={"lower_is_better": [*self.lower_is_better, *lower]})

    def scores(self) -> Iterator[tuple[str, str]]:
        """Every score that is named, with the setting that names it."""
        for setting in ("min_scores", "max_scores", "max_regression", "lower_is_better"):
            yield from ((setting, name) for name in getattr(self, setting))
        for setting in ("beats_champion", "beats_base"):
            test: PairedTest | None = getattr(self, setting)
            yield from ((f"{setting}.metric", name) for name in (test.metrics if test else ()) if name != "auto")


def read_gates(text: str, *, place: str) -> Gates:
    """The gates in a YAML text; `place` is its name in messages.

    Raises:
        ConfigError: it is not a YAML mapping, or names unknown keys or values; every problem is reported.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        problems = list(_given_twice(node, place))
        document = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        raise syntax_error(place, text, error) from error
    except (ValueError, RecursionError) as error:  # an impossible date; endless brackets
        raise ConfigError(f"{place} cannot be read: {brief(error)}", hint=EXAMPLE) from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"{place} is not a mapping of gates", hint=EXAMPLE)
    try:
        gates = Gates.model_validate(document)
    except ValidationError as error:
        problems += [_problem(place, detail) for detail in error.errors()]
        raise ConfigError(headline(problems, f"in {place}"), problems=problems) from error
    problems += _turned_round(gates, place)
    if problems:
        raise ConfigError(headline(problems, f"in {place}"), problems=problems)
    return gates


def gates_file(path: Path) -> Gates:
    """The gates in a file.

    Raises:
        ConfigError: it cannot be read, or as `read_gates`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}", hint="name a YAML file of gates") from error
    return read_gates(text, place=str(path))


def near(name: str, known: Sequence[str], *, what: str = "known") -> str:
    """The nearest known name as a hint, else all known names."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"{what}: {', '.join(known) or 'none'}"


def _given_twice(node: yaml.Node | None, place: str) -> Iterator[Problem]:
    """Keys that are given twice: YAML silently keeps the last value."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = f"{place} line {key.start_mark.line + 1}"
                    yield Problem(place=line, message=f"{key.value} is given twice", hint="keep one of them")
                seen.add(key.value)
            yield from _given_twice(value, place)
    elif isinstance(node, yaml.SequenceNode):
        for element in node.value:
            yield from _given_twice(element, place)


def _problem(place: str, detail: ErrorDetails) -> Problem:
    path = [str(part) for part in detail["loc"]]
    where = f"{place}  {'.'.join(path)}"
    if detail["type"] == "extra_forbidden":
        return Problem(place=where, message="unknown key", hint=_hint(path))
    if own := own_words(detail):
        return Problem(place=where, message=own)
    return Problem(place=where, message=f"{shown(detail['input'])}: {detail['msg']}")


def _hint(path: Sequence[str]) -> str:
    section: type[Section] = Gates
    for part in path[:-1]:
        section = next(kind for kind in members(section.model_fields[part]) if kind is not NoneType)
    if section is Gates and path[-1] in PairedTest.model_fields:
        return f"{path[-1]} belongs under beats_champion or beats_base"
    return near(path[-1], list(section.model_fields))


def _turned_round(gates: Gates, place: str) -> Iterator[Problem]:
    """Bounds on the wrong side."""
    for name, bound in gates.min_scores.items():
        if gates.lower(name):
            message, hint = "it is better when it is lower", f"write max_scores: {{{name}: {bound:g}}}"
            yield Problem(place=f"{place}  min_scores.{name}", message=message, hint=hint)
