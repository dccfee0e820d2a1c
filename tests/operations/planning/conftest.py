"""Plans for described set-ups, with the real rules and the real estimate of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.operations.planning import deciding, typical
from mlflow_ft.operations.planning.candidates import Planner
from mlflow_ft.operations.planning.costs import Costs
from mlflow_ft.registry import Registry
from mlflow_ft.values import Hardware, Plan, Situation
from mlflow_ft.values.planning import USUAL_AIM

Planned = Callable[..., Plan]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(plugins.load({}))


@pytest.fixture
def plan_for(registry: Registry) -> Planned:
    """The plan for a set-up: rows, kind, GPUs, GB of each, size of the model in billions."""

    def plan(rows: int, kind: Any, gpus: int, memory: float, billions: float, **more: Any) -> Plan:
        size = billions * 1e9
        about = {"aim": USUAL_AIM[kind], "row_tokens": 300.0, "long_row": 1000, "positions": 8192} | more
        hardware = Hardware(gpus=gpus, memory=memory, cores=8)
        parameters = typical.shape(size).weights
        situation = Situation(kind=kind, rows=rows, hardware=hardware, parameters=parameters, **about)
        with typical.model(size, "typical") as base:
            costs = Costs(base=base, registry=registry, situation=situation)
            return deciding.decide(Planner(situation=situation, costs=costs, registry=registry))

    return plan
