"""Plans for described set-ups, with the real rules and recorded estimates of memory.

An estimate takes seconds, and the set-ups need a hundred: they are read from estimates.json, which
`RECORD_ESTIMATES=1 pytest tests/operations/planning` writes with the real estimator. A test repeats some of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.operations.planning import deciding, typical
from mlflow_ft.operations.planning.candidates import Planner
from mlflow_ft.operations.planning.costs import Costs, processes
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Choice, Hardware, Plan, Situation
from mlflow_ft.values.planning import USUAL_AIM

FILE = Path(__file__).parent / "estimates.json"
RECORDING = os.environ.get("RECORD_ESTIMATES") == "1"
Estimates = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Recorded(Costs):
    """Costs by recorded estimates."""

    recorded: Estimates

    def estimate(self, choice: Choice, config: Config, *, batch: int, eval_batch: int, per_device: int) -> Any:
        from mlflow_ft.engine.memory.values import Estimate, Phase

        hardware = self.situation.hardware
        device = f"{processes(choice, hardware)} {'GPU' if hardware.gpus else 'CPU'} {choice.strategy}"
        shape = f"batch {batch} of {per_device}, {eval_batch} in evaluation, length {config.data.max_length}"
        adapter = f"{config.adapter.kind} {config.adapter.r} {config.model.quantize}"
        key = f"{self.base.name} {config.method}, {adapter}, {device}, {shape}"
        if key not in self.recorded and RECORDING:
            needs = super().estimate(choice, config, batch=batch, eval_batch=eval_batch, per_device=per_device)
            self.recorded[key] = [{"name": phase.name, "parts": dict(phase.parts)} for phase in needs.phases]
        assert key in self.recorded, f"run RECORD_ESTIMATES=1 pytest {FILE.parent}: there is no {key}"
        return Estimate(phases=[Phase(**phase) for phase in self.recorded[key]])


@pytest.fixture(scope="session")
def recorded() -> Iterator[Estimates]:
    estimates: Estimates = json.loads(FILE.read_text()) if FILE.is_file() else {}
    known = len(estimates)
    yield estimates
    if RECORDING and len(estimates) > known:
        lines = [f"{json.dumps(key)}: {json.dumps(estimates[key])}" for key in sorted(estimates)]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(plugins.load({}))


@pytest.fixture
def planner_for(registry: Registry, recorded: Estimates, tmp_path: Path) -> Callable[..., Planner]:
    """The planner for a set-up: rows, kind, GPUs, GB of each, size of the model in billions."""

    def planner(rows: int, kind: Any, gpus: int, memory: float, billions: float, **more: Any) -> Planner:
        about = {"aim": USUAL_AIM[kind], "row_tokens": 300.0, "long_row": 1000, "positions": 8192} | more
        hardware = Hardware(gpus=gpus, memory=memory, cores=8)
        parameters = typical.shape(billions * 1e9).weights
        situation = Situation(kind=kind, rows=rows, hardware=hardware, parameters=parameters, **about)
        base = BaseModel(name=f"{billions}B", path=tmp_path, name_or_path="", revision="", origin="")
        if RECORDING:
            base = stack.enter_context(typical.model(billions * 1e9, base.name))
        costs = Recorded(base=base, registry=registry, situation=situation, recorded=recorded)
        return Planner(situation=situation, costs=costs, registry=registry)

    from contextlib import ExitStack

    with ExitStack() as stack:
        yield planner


@pytest.fixture
def plan_for(planner_for: Callable[..., Planner]) -> Callable[..., Plan]:
    """The plan for a set-up."""
    return lambda *setup, **more: deciding.decide(planner_for(*setup, **more))
