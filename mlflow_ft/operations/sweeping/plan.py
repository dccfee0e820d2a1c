"""What a sweep was asked for; recorded in the parent run and in the study, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.config.space import Space, settings
from mlflow_ft.operations.sweeping.budget import Budget
from mlflow_ft.operations.sweeping.objective import Objective

PLAN_FILE = "sweep/plan.json"
"""The artifact of the parent run."""
LARGEST_GRID = 100
"""With a budget of time, a space with at most so many combinations is tried completely."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is searched, by which score, how long, and with which settings otherwise."""

    method: str
    arguments: tuple[str, ...]
    """The settings that all trials share, as `--key value` pairs."""
    space: Space
    objective: Objective
    budget: Budget
    workers: int | None
    """Trials at once; None leaves it to the launcher."""
    seed: int
    rank: int
    """The adapter's rank where the space does not vary it."""
    unpruned: str = ""
    """Why no trial is pruned; "" if trials are."""
    keep_weights: bool = False
    """Keep the weights of every trial, not only of the best one."""
    cpus: float | None = None
    gpus: float | None = None
    """What each trial takes; None leaves it to the launcher."""

    @property
    def grid(self) -> int | None:
        """The number of combinations if all of them fit into the budget: then each is tried once; else None."""
        sizes = [len(dimension.choices) for dimension in self.space]
        combinations = math.prod(sizes)
        most = self.budget.trials or LARGEST_GRID
        return combinations if 0 < combinations <= most else None

    def trial_arguments(self, drawn: Mapping[str, Any]) -> list[str]:
        """The command line of a trial: the method, the shared settings, and those that were drawn."""
        own = settings(self.space, drawn, rank=self.rank)
        words = {path: "none" if value is None else str(value) for path, value in own.items()}
        return [self.method, *self.arguments, *(f"--{path}={word}" for path, word in words.items())]

    def as_json(self) -> str:
        """The plan as it is recorded."""
        from pydantic import TypeAdapter

        return TypeAdapter(Plan).dump_json(self, indent=2).decode()


def read_plan(recorded: Mapping[str, Any]) -> Plan:
    """The plan in the JSON that was recorded."""
    from pydantic import TypeAdapter

    return TypeAdapter(Plan).validate_python(recorded)


def key(config: Config, plan: Plan) -> str:
    """A hash of the sweep: the same for the same command started again, with another budget or more workers, too."""
    space = [(str(dimension), dimension.name) for dimension in plan.space]
    content = ["sweep", config.key, space, plan.objective.names, plan.objective.direction]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def why_unpruned(config: Config, space: Space, kinds: tuple[str, ...]) -> str:
    """Why the held-out losses of trials cannot be compared during training; "" if they can."""
    if "prompt" in kinds:
        return f"the loss of {config.method} does not say how good the answers are"
    losses = [dimension.path for dimension in space if dimension.path.startswith("objective.")]
    return f"{' and '.join(losses)} changes the loss itself" if losses else ""
