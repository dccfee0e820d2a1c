"""A way to train with its settings: made from the rules' advice and the user's own settings, checked and costed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_ft.config import Config, Given, resolve
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.planning import advised
from mlflow_ft.operations.planning.costs import Costs, processes
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from mlflow_ft.values import Choice, Situation
from mlflow_ft.values.planning import Planned, Reason

OF_THE_WEIGHTS = ("adapter.", "model.")
"""The defaults of a method that say what trains."""
IMITATES = "sft"
"""The method of which `lora`, `qlora`, `full` ... are variants."""
REWARDED = "rollout.reward_funcs"
PER_DEVICE, ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
EVALUATED = "evaluation.per_device_eval_batch_size"
DECIDED = ("method", "adapter.kind", "model.quantize")
"""Settings that a plan decides."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes ways to train for one situation, with the settings that the user gave."""

    situation: Situation
    costs: Costs
    registry: Registry
    given: Mapping[str, Any] = field(default_factory=dict)
    """The user's own settings by full path; they override the rules'."""

    def planned(self, choice: Choice) -> Planned:
        """The choice with its settings and its cost, or why it is not possible."""
        advice = advised.ask(self.registry, self.situation, choice)
        settings = {path: value for path, (value, _) in advice.settings.items()}
        reasons = {path: reason for path, (_, reason) in advice.settings.items()}
        command = self.command(choice, settings)
        settings = self._own(choice, command) | settings
        try:
            config = self._config(command, settings, reasons)
            start.check_method(_rewarded(config, self.registry), self.registry)
        except ConfigError as error:
            problems = "; ".join(problem.message for problem in error.problems)
            return Planned(choice=choice, command=command, settings={}, reasons={}, refused=problems or error.message)
        rows, why = advice.batch or (PER_STEP, USUAL_BATCH)
        if given := self.given.keys() & {PER_DEVICE, ACCUMULATION}:
            rows = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
            rows *= processes(choice, self.situation.hardware) if PER_DEVICE in given else 1
        cost, eval_rows = self.costs.cost(choice, config, step_rows=rows)
        settings |= {PER_DEVICE: cost.batch, ACCUMULATION: cost.accumulation}
        reasons |= {PER_DEVICE: why, ACCUMULATION: why}
        if eval_rows != config.evaluation.per_device_eval_batch_size:
            settings[EVALUATED] = eval_rows
            reasons[EVALUATED] = Reason(
                rule="memory", text="more rows at once do not fit in evaluation", source=ESTIMATE
            )
        return Planned(choice=choice, command=command, settings=settings | dict(self.given), reasons=reasons, cost=cost)

    def command(self, choice: Choice, settings: Mapping[str, Any]) -> str:
        """The method to train with: the variants of sft are methods of their own, unless rows are packed."""
        variant = choice.method == IMITATES and not settings.get("objective.packing")
        return choice.weights if variant else choice.method

    def _own(self, choice: Choice, command: str) -> dict[str, Any]:
        """The settings that say what trains, where the method's own defaults say something else."""
        if command == choice.weights:
            return {}
        wanted = {
            path: value
            for path, value in self.registry.trainers[choice.weights].defaults.items()
            if path.startswith(OF_THE_WEIGHTS)
        }
        return wanted if choice.weights != "full" else {"adapter.kind": "none"}

    def _config(self, command: str, settings: Mapping[str, Any], reasons: Mapping[str, Reason]) -> Config:
        rule = {path: reasons[path].rule if path in reasons else "weights" for path in settings}
        file = [Given(key=path, value=value, place=f"plan rule {rule[path]}") for path, value in settings.items()]
        own = [Given(key=path, value=value, place=f"--{path} (command line)") for path, value in self.given.items()]
        defaults = self.registry.trainers[command].defaults
        return resolve(command, defaults=defaults, file=file, command_line=own)


PER_STEP = 16
ESTIMATE = "the estimate of memory"
USUAL_BATCH = Reason(rule="batch", text=f"{PER_STEP} rows a step, in parts that fit in memory", source="")


def _rewarded(config: Config, registry: Registry) -> Config:
    """The configuration with a reward, which the plan's reader names, so that the other settings can be checked."""
    settings = registry.trainers[config.method].settings
    if settings is None or "reward_funcs" not in settings or config.rollout.reward_funcs or config.rollout.reward_model:
        return config
    reward = next(iter(registry.rewards)).name
    rollout = config.rollout.model_copy(update={"reward_funcs": [reward]})
    return config.model_copy(update={"rollout": rollout})
