"""The Optuna study of a sweep, in a file that several processes share: what was tried, and what to try next."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow_ft.config.space import Dimension
from mlflow_ft.operations.sweeping.plan import Plan, read_plan

if TYPE_CHECKING:
    import optuna

Ended = Literal["complete", "pruned", "failed"]
PLAN, SECONDS, ERROR, RUN, ROWS = "plan", "seconds", "error", "run", "rows"
"""Names of attributes of the study and of its trials."""
STARTUP_TRIALS = 5
"""Trials that must be complete before another is pruned."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One trial: its number and the values that were drawn for it."""

    number: int
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"trial-{self.number}"


class Study:
    """One study. Each call reads the file again, so that it has what other processes wrote."""

    def __init__(self, file: Path, name: str, *, plan: Plan | None = None) -> None:
        """Open the study in `file`, or create it for `plan`."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(file)))
        if plan is None:
            self.optuna = optuna.load_study(study_name=name, storage=storage, pruner=_pruner())
            self.plan = read_plan(json.loads(self.optuna.user_attrs[PLAN]))
            return
        self.plan = plan
        self.optuna = optuna.create_study(
            study_name=name, storage=storage, direction=plan.objective.direction, load_if_exists=True
        )
        if PLAN not in self.optuna.user_attrs:
            for values in _grid(plan):
                self.optuna.enqueue_trial(values)
        self.optuna.set_user_attr(PLAN, plan.as_json())

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Every trial that was begun."""
        from optuna.trial import TrialState

        return [trial for trial in self.optuna.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The complete trial with the best score; the earliest, of several with the same."""
        complete = [trial for trial in self.trials if trial.state.name == "COMPLETE"]
        sign = 1 if self.plan.objective.lower else -1
        return min(complete, key=lambda trial: (sign * float(trial.value or 0), trial.number), default=None)

    @property
    def seconds(self) -> float:
        """How long the sweep has worked, over all attempts."""
        return float(self.optuna.user_attrs.get(SECONDS, 0.0))

    def spent(self, seconds: float) -> None:
        """Record how long the sweep has worked."""
        self.optuna.set_user_attr(SECONDS, seconds)

    def has_rows(self, digest: str) -> bool:
        """Whether these are the rows of the first trial; the first one to ask has them."""
        if ROWS not in self.optuna.user_attrs:
            self.optuna.set_user_attr(ROWS, digest)
        return bool(self.optuna.user_attrs[ROWS] == digest)

    def open_trials(self) -> list[Drawn]:
        """The trials that began and did not end."""
        return [_drawn(trial) for trial in self.trials if not trial.state.is_finished()]

    def draw(self) -> Drawn | None:
        """The next trial; None if the whole grid has been tried.

        What is drawn depends on the seed, the trial's number and the trials before it, not on how often the sweep was
        interrupted.
        """
        from optuna.samplers import TPESampler

        number = len(self.trials)
        if self.plan.grid is not None and number >= self.plan.grid:
            return None
        self.optuna.sampler = TPESampler(seed=self.plan.seed + number)
        trial = self.optuna.ask({dimension.name: _distribution(dimension) for dimension in self.plan.space})
        return Drawn(number=trial.number, values=dict(trial.params))

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        """A trial as it is now."""
        return self.optuna.get_trials(deepcopy=False)[number]

    def note(self, number: int, name: str, value: Any) -> None:
        """Set an attribute of a trial that has not ended."""
        self._trial(number).set_user_attr(name, value)

    def tell(self, number: int, ended: Ended, value: float | None = None) -> None:
        """Record how a trial ended."""
        from optuna.trial import TrialState

        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[ended]
        self.optuna.tell(number, value, state=state)

    def hopeless(self, number: int, *, share: float, loss: float) -> str:
        """Record a trial's held-out loss after a share of its training; say why it should end, or "".

        It should if the loss is above the median of the complete trials at the same point.
        """
        if self.plan.unpruned:
            return ""
        trial, percent = self._trial(number), round(100 * share)
        if percent not in self.trial(number).intermediate_values:
            trial.report(loss if self.plan.objective.lower else -loss, percent)
        if not trial.should_prune():
            return ""
        return f"its held-out loss {loss:.4g} after {percent} % of the training is worse than the median of the trials"

    def _trial(self, number: int) -> optuna.Trial:
        import optuna

        return optuna.Trial(
            self.optuna, self.trial(number)._trial_id
        )  # Optuna has no other way to take up a trial that was begun


def _pruner() -> optuna.pruners.BasePruner:
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)


def _drawn(trial: optuna.trial.FrozenTrial) -> Drawn:
    return Drawn(number=trial.number, values=dict(trial.params))


def _grid(plan: Plan) -> Sequence[dict[str, Any]]:
    """Every combination, in an order that depends on the seed; empty unless all of them fit into the budget."""
    if plan.grid is None:
        return []
    names = [dimension.name for dimension in plan.space]
    choices = [dimension.choices for dimension in plan.space]
    combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*choices)]
    random.Random(plan.seed).shuffle(combinations)
    return combinations


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
