"""What a sweep optimises: one of the scores on the held-out rows, in the direction in which it is better."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mlflow_ft.config.gates import Gates, gates_file
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.records import Evaluator
from mlflow_ft.registry import Registry, chosen_evaluators

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The score that decides which trial is best."""

    names: tuple[str, ...]
    """The first of these that the held-out rows have: several only where the method's own score depends on them."""
    direction: Direction

    @property
    def lower(self) -> bool:
        """Whether a lower value is better."""
        return self.direction == "minimize"

    def __str__(self) -> str:
        return f"{'lowest' if self.lower else 'highest'} {' or '.join(self.names)}"

    def value(self, scores: Mapping[str, float]) -> tuple[str, float] | None:
        """Name and value of the score, from all scores of a trial; None if it has none of them."""
        return next(((name, scores[name]) for name in self.names if name in scores), None)

    def check(self, evaluators: Iterable[Evaluator], guards: Collection[str], *, where: str) -> None:
        """Refuse an objective that none of the evaluators returns.

        Raises:
            ConfigError: no evaluator returns it.
        """
        known: list[str] = []
        for evaluator in evaluators:
            if not evaluator.scores:  # its scores are known only after it has run
                return
            known += evaluator.scores
        known += [f"{guard}/{score}" for guard in guards for score in tuple(known)]
        if any(fnmatchcase(name, pattern) for name in self.names for pattern in known):
            return
        near = difflib.get_close_matches(self.names[0], known, n=1)
        raise ConfigError(
            f"--objective {self.names[0]}: no evaluator returns this score{where}",
            hint=f"did you mean {near[0]}?" if near else f"scores: {', '.join(dict.fromkeys(known)) or 'none'}",
        )


def choose(config: Config, registry: Registry, *, name: str | None, direction: str | None) -> Objective:
    """The objective with this name, else the method's own score; checked before anything is loaded.

    Raises:
        ConfigError: no evaluator returns it, or the direction contradicts the score.
    """
    trainer = registry.trainers[config.method]
    names: Sequence[str] = (name,) if name else trainer.scores or ("loss",)
    file = config.registry.gates
    gates = gates_file(file.expanduser()) if file else Gates()
    lower = gates.knowing(registry.lower_is_better).lower(names[0])
    own: Direction = "minimize" if lower else "maximize"
    if direction is not None and direction not in ("minimize", "maximize"):
        raise ConfigError(f"--direction: {direction!r} is not minimize or maximize", hint=f"leave it out: {own}")
    objective = Objective(names=tuple(names), direction=own)
    evaluators = chosen_evaluators(registry, config.evaluation.evaluators, task=trainer.task)
    objective.check(evaluators, config.evaluation.guards or (), where="")
    if direction is not None and direction != own:
        raise ConfigError(
            f"--direction {direction} contradicts the score {names[0]}, of which {'lower' if lower else 'higher'} "
            "values are better",
            hint="leave --direction out; for a score of your own, list it under lower_is_better in a gates file "
            "(--registry.gates)",
        )
    return objective
