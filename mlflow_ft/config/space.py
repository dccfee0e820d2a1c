"""A search space: the settings that a sweep varies, each within bounds or among choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_ft.config.explain import FIELDS, locate, members
from mlflow_ft.config.given import Given, headline
from mlflow_ft.errors import ConfigError, Problem

RANK = "adapter.r"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting and the values it may take: `choices`, or numbers from `low` to `high`."""

    path: str
    place: str
    """Where it was given."""
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    of_rank: bool = False
    """The bounds are multiples of RANK."""

    @property
    def name(self) -> str:
        """The name in tables and pictures, without a dot, at which MLflow's tables would look inside the value."""
        leaf = self.path.rpartition(".")[2]
        name = leaf if locate(leaf) == [self.path] else self.path.replace(".", "/")
        return f"{name} per r" if self.of_rank else name

    @property
    def whole(self) -> bool:
        """Whether the setting takes whole numbers only."""
        kinds = members(FIELDS[self.path])
        return int in kinds and float not in kinds and not self.of_rank

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values by which it is checked: every choice, or both bounds."""
        if self.choices:
            return self.choices
        return tuple(int(bound) if self.whole else bound for bound in (self.low, self.high))

    def value(self, drawn: Any, rank: int) -> Any:
        """The setting's value for what was drawn from this dimension."""
        return max(1, round(drawn * rank)) if self.of_rank else drawn

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        unit = " times the rank" if self.of_rank else ""
        more = " on a log scale" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{unit}{more}"


Space = tuple[Dimension, ...]


def settings(space: Space, drawn: Mapping[str, Any], *, rank: int) -> dict[str, Any]:
    """The settings for one draw of every dimension; `rank` is the rank where the space does not vary it."""
    rank = next((int(drawn[dimension.name]) for dimension in space if dimension.path == RANK), rank)
    return {dimension.path: dimension.value(drawn[dimension.name], rank) for dimension in space}


def corners(space: Space, *, rank: int) -> Iterator[list[Given]]:
    """Settings by which the space is checked: every choice and every bound occurs at least once."""
    for index in range(max(len(dimension.samples) for dimension in space)):
        drawn = {dimension.name: dimension.samples[index % len(dimension.samples)] for dimension in space}
        values = settings(space, drawn, rank=rank)
        yield [
            Given(
                key=dimension.path,
                value=values[dimension.path],
                place=dimension.place,
                written=_written(values, dimension),
            )
            for dimension in space
        ]


def _written(values: Mapping[str, Any], dimension: Dimension) -> str:
    value = values[dimension.path]
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_fixed(space: Space, origins: Mapping[str, str]) -> None:
    """Raise ConfigError if a setting of the space is also given one value; `origins` are those that the user gave."""
    problems = [
        Problem(
            place=f"{dimension.place}  {dimension.path}",
            message=f"is also fixed by {origins[dimension.path]}",
            hint="keep one of them",
        )
        for dimension in space
        if dimension.path in origins
    ]
    if problems:
        raise ConfigError(headline(problems, "in the space"), problems=problems)
