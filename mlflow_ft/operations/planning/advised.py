"""Asks the rules of a plan, and joins what they advise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow_ft.errors import FineTuneError, PluginError, brief
from mlflow_ft.records import PlanRule
from mlflow_ft.registry import Registry
from mlflow_ft.values import Advice, Choice, Situation
from mlflow_ft.values.planning import Reason

STRATEGIES = ("local", "ddp", "fsdp", "deepspeed-zero2", "deepspeed-zero3")


@dataclass(frozen=True, kw_only=True)
class Advised:
    """What all rules that apply advise, in the order in which they were asked."""

    given: tuple[tuple[PlanRule, Advice], ...]

    def names(self, field: str) -> list[str]:
        """The advised `methods`, `weights` or `strategies`: the first rule's first, without repetition."""
        return list(dict.fromkeys(name for _, advice in self.given for name in getattr(advice, field)))

    def reason(self, field: str, name: str) -> Reason:
        """Why a name is among them."""
        return next(reason_of(rule, advice) for rule, advice in self.given if name in getattr(advice, field))

    @property
    def settings(self) -> Mapping[str, tuple[Any, Reason]]:
        """The advised settings with their reasons; the first rule that sets one decides."""
        settings: dict[str, tuple[Any, Reason]] = {}
        for rule, advice in self.given:
            for path, value in advice.settings.items():
                settings.setdefault(path, (value, reason_of(rule, advice)))
        return settings

    @property
    def batch(self) -> tuple[int, Reason] | None:
        """The rows per optimizer step."""
        return next(((advice.batch, reason_of(rule, advice)) for rule, advice in self.given if advice.batch), None)

    @property
    def before(self) -> list[str]:
        return [advice.before for _, advice in self.given if advice.before]

    @property
    def elsewhere(self) -> dict[str, str]:
        return {name: cost for _, advice in reversed(self.given) for name, cost in advice.elsewhere.items()}


def reason_of(rule: PlanRule, advice: Advice) -> Reason:
    return Reason(rule=rule.name, text=advice.reason, source=rule.source)


def ask(registry: Registry, situation: Situation, choice: Choice | None = None) -> Advised:
    """Ask every rule that applies; with a choice, for its settings.

    Raises:
        PluginError: a rule failed, or advises a method or strategy that does not exist.
    """
    rules = sorted(registry.plan_rules, key=lambda rule: -rule.priority)
    asked = replace(situation, choice=choice)
    advised = tuple(pair for rule in rules for pair in _answer(rule, asked, registry))
    return Advised(given=advised)


def _answer(rule: PlanRule, situation: Situation, registry: Registry) -> Iterator[tuple[PlanRule, Advice]]:
    provider = registry.plan_rules.provider(rule.name)
    try:
        if not rule.applies(situation):
            return
        advice = rule.advise(situation)
    except FineTuneError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(
            f"the plan rule {rule.name} of {provider} raised {brief(error, with_type=True)}",
            hint="fix or uninstall the plugin, or choose others with MLFLOW_FT_PLUGINS=name,name",
        ) from error
    unknown = [name for name in (*advice.methods, *advice.weights) if name not in registry.trainers]
    unknown += [name for name in advice.strategies if name not in STRATEGIES]
    if unknown:
        raise PluginError(
            f"the plan rule {rule.name} of {provider} advises {', '.join(unknown)}, which is not registered",
            hint="known methods: mlflow-ft show trainers; strategies: " + ", ".join(STRATEGIES),
        )
    yield rule, advice
