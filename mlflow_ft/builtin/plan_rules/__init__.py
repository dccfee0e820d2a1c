"""The built-in rules of `mlflow-ft plan`: the decision guide of the field, a record per rule, each with its source."""

from __future__ import annotations

from mlflow_ft import PlanRule, hookimpl
from mlflow_ft.builtin.plan_rules import methods, settings, strategies, weights


@hookimpl
def register_plan_rules() -> list[PlanRule]:
    return [*methods.RULES, *weights.RULES, *strategies.RULES, *settings.RULES]
