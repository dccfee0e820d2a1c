"""A way to train with its settings: made from the rules' advice and the user's own settings, checked and costed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_ft.config import Config, Given, resolve
from mlflow_ft.config.explain import FIELDS
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.planning import advised
from mlflow_ft.operations.planning.costs import Costs, processes
from mlflow_ft.operations.planning.duration import SAMPLED
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from mlflow_ft.values import Choice, Situation
from mlflow_ft.values.planning import Cost, Planned, Reason

OF_THE_WEIGHTS = ("adapter.", "model.")
"""The defaults of a method that say what trains."""
IMITATES = "sft"
"""The method of which `lora`, `qlora`, `full` ... are variants."""
PER_DEVICE, ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
EVALUATED = "evaluation.per_device_eval_batch_size"
PACKAGERS = "package.packagers"
DECIDED = ("method", "adapter.kind", "model.quantize")
"""Settings that a plan decides."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes ways to train for one situation, with the settings that the user gave."""

    situation: Situation
    costs: Costs
    registry: Registry
    given: Mapping[str, Any] = field(default_factory=dict)
    """The user's own settings by full path. What a rule advises together with one of them is left to the default:
    alpha, if the rank is given."""

    def planned(self, choice: Choice) -> Planned:
        """The choice with its settings and its cost, or why it is not possible."""
        from mlflow_ft.engine.models.skeleton import UnsuitedError

        advice = advised.ask(self.registry, self.situation, choice)
        overruled = {reason.rule for path, (_, reason) in advice.settings.items() if path in self.given}
        chosen = {path: pair for path, pair in advice.settings.items() if pair[1].rule not in overruled}
        settings = {path: value for path, (value, _) in chosen.items()}
        reasons = {path: reason for path, (_, reason) in chosen.items()}
        command = self.command(choice, settings)
        own = self._own(choice, command)
        settings = own | settings
        reasons |= dict.fromkeys(own, Reason(rule="weights", text=f"what trains: {choice.weights}", source=""))
        try:
            config = self._config(command, settings, reasons)
            config = _rewarded(config, self.registry)
            self._check(choice, config)
        except ConfigError as error:
            problems = "; ".join(problem.message for problem in error.problems)
            return Planned(choice=choice, command=command, settings={}, reasons={}, refused=problems or error.message)
        rows, why = advice.batch or (PER_STEP, USUAL_BATCH)
        try:
            cost = self.costs.cost(choice, config, per_device=self._per_device(choice, config, rows))
        except UnsuitedError as error:
            return Planned(choice=choice, command=command, settings={}, reasons={}, refused=str(error))
        launch = self._launch(choice)
        settings |= {PER_DEVICE: cost.batch, ACCUMULATION: cost.accumulation} | launch
        reasons |= {PER_DEVICE: why, ACCUMULATION: why}
        reasons |= dict.fromkeys(launch, Reason(rule="strategies", text="a process for each GPU", source=""))
        for path, value, text in _for_room(cost, config):
            settings[path], reasons[path] = value, Reason(rule="memory", text=text, source=ESTIMATE)
        settings |= self.given
        reasons = {path: reason for path, reason in reasons.items() if path not in self.given}
        return Planned(choice=choice, command=command, settings=settings, reasons=reasons, cost=cost)

    def _check(self, choice: Choice, config: Config) -> None:
        """Raise ConfigError if settings do not work together, or with the strategy."""
        from mlflow_ft.config.launch import LaunchSection
        from mlflow_ft.engine.launching import strategy

        start.check_method(config, self.registry)
        if choice.strategy != "local":
            launched = LaunchSection.model_validate({"strategy": choice.strategy})
            prompt = self.registry.adapters[config.adapter.kind].learned_prompt
            spread = config.model_copy(update={"launch": launched})
            if reason := strategy.misfit(spread, learned_prompt=prompt):
                raise ConfigError(reason)

    def _per_device(self, choice: Choice, config: Config, rows: int) -> int:
        """The rows of a device in an optimizer step: the user's number, or a share; whole groups of sampled answers."""
        training, count = config.training, processes(choice, self.situation.hardware)
        if PER_DEVICE in self.given:
            return training.batch_size * training.gradient_accumulation_steps
        group = config.rollout.num_generations if choice.method in SAMPLED else 1
        return max(1, -(-(rows // count) // group)) * group

    def _launch(self, choice: Choice) -> dict[str, Any]:
        if choice.strategy == "local":
            return {}
        return {
            "launch.launcher": "accelerate",
            "launch.strategy": choice.strategy,
            "launch.num_processes": self.situation.hardware.gpus,
        }

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
            if path.startswith(OF_THE_WEIGHTS) and value != FIELDS[path].default
        }
        return wanted if choice.weights != "full" else {"adapter.kind": "none"}

    def _config(self, command: str, settings: Mapping[str, Any], reasons: Mapping[str, Reason]) -> Config:
        rule = {path: reasons[path].rule if path in reasons else "weights" for path in settings}
        file = [Given(key=path, value=value, place=f"plan rule {rule[path]}") for path, value in settings.items()]
        own = [Given(key=path, value=value, place=f"--{path} (command line)") for path, value in self.given.items()]
        defaults = self.registry.trainers[command].defaults
        options = self.registry.option_types
        return resolve(command, defaults=defaults, file=file, command_line=own, options=options)


def _for_room(cost: Cost, config: Config) -> Iterator[tuple[str, Any, str]]:
    """Settings that the memory asks for, each with its reason."""
    if cost.eval_batch != config.evaluation.per_device_eval_batch_size:
        yield EVALUATED, cost.eval_batch, "more rows at once do not fit in evaluation"
    if not cost.merges and config.package.packagers is None:
        yield PACKAGERS, ["adapter"], "the merged model does not fit on the device; merge later with mlflow-ft merge"


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
