"""Makes a plan from what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlflow_ft.config import Config
from mlflow_ft.config.given import headline
from mlflow_ft.errors import ConfigError, Problem
from mlflow_ft.operations.planning import deciding, remedies, situation
from mlflow_ft.operations.planning.candidates import DECIDED, Planner
from mlflow_ft.operations.planning.costs import Costs
from mlflow_ft.operations.planning.situation import Asked
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from mlflow_ft.values import Plan

NOT_GIVEN = ("method ", "demo ")
"""Prefixes of the origin of a setting that the user did not give."""


def make(asked: Asked, config: Config, *, plugins: Plugins, progress: Progress) -> Plan:
    """The plan for what the options ask; `config` has the settings that the user gave.

    Raises:
        ConfigError: options contradict each other, the data, or the plan. DataError: the data cannot be read.
        ModelError: the model cannot be found. ResourceError: the memory of a GPU is not known.
    """
    given = settings_given(config)
    registry = Registry(plugins)
    with situation.understand(asked, config, plugins=plugins, registry=registry, progress=progress) as understood:
        costs = Costs(base=understood.base, registry=registry, situation=understood.situation)
        planner = Planner(situation=understood.situation, costs=costs, registry=registry, given=given)
        plan = deciding.decide(planner, remarks=understood.remarks)
        if plan.recommended is None:
            plan = replace(plan, would_fit=list(remedies.would_fit(planner)))
    return plan


def settings_given(config: Config) -> Mapping[str, Any]:
    """The settings that the user gave, by full path.

    Raises:
        ConfigError: one of them is for the plan to decide.
    """
    given = {
        path: value
        for path, value in config.flat().items()
        if not config.origins.get(path, NOT_GIVEN[0]).startswith(NOT_GIVEN)
        and (path, value) != ("method", start.PREPARE)  # the method of a command that has none
    }
    problems = [
        Problem(place=config.origins[path], message=f"{path} is for the plan to decide", hint="leave it out")
        for path in DECIDED
        if path in given
    ]
    if problems:
        raise ConfigError(headline(problems, "in what the plan was given"), problems=problems)
    return given
