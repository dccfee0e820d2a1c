"""Plans for described set-ups: the real rules and the real decisions, with estimates of memory in closed form.

The estimator itself takes seconds for each way to train, and the set-ups have a hundred. What it says is tested with
it; a test here compares both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.engine.memory.values import Estimate, Phase
from mlflow_ft.operations.planning import deciding, typical
from mlflow_ft.operations.planning.candidates import Planner
from mlflow_ft.operations.planning.costs import Costs, processes
from mlflow_ft.operations.planning.typical import Shape
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Choice, Hardware, Plan, Situation
from mlflow_ft.values.planning import USUAL_AIM

SHARDED = ("fsdp", "deepspeed-zero3")
NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class InClosedForm(Costs):
    """Costs by the usual formulas for a Llama-like model with recomputed activations."""

    shape: Shape

    def estimate(self, choice: Choice, config: Config, *, batch: int, eval_batch: int, per_device: int) -> Estimate:
        shape, full = self.shape, config.adapter.kind == "none"
        size = 2 if self.situation.hardware.gpus else 4
        held = shape.weights * (4 if full else size)
        if config.model.quantize == "nf4":
            held = int(shape.layers * shape.layer_weights * 0.52) + shape.embedding_weights * 4
        trained = shape.weights if full else shape.weights * config.adapter.r // 2000
        state = {"gradients": 4 * trained, "optimizer": (2 if config.model.quantize == "nf4" else 8) * trained}
        state |= {"reference": held} if full and choice.method in ("dpo", "kto") else {}
        count = processes(choice, self.situation.hardware)
        shared = count if choice.strategy in SHARDED else 1
        gathered = 2 * shape.layer_weights * 4 + shape.embedding_weights * 4 if shared > 1 else 0
        twice = 2 if self.situation.kind == "preference" and choice.method != "sft" else 1
        tokens = batch * twice * config.data.max_length
        in_a_step = {"activations": self._activations(tokens, kept=True), "logits": min(tokens, 1024) * self._words()}
        training = {name: part // shared for name, part in ({"weights": held} | state).items()}
        training |= in_a_step | {"communication": gathered}
        read = eval_batch * (config.data.max_length + NEW_TOKENS)
        cache = 2 * shape.layers * shape.hidden * shape.key_value_heads // shape.heads * size * read
        evaluation = {"weights": held, "activations": self._activations(read, kept=False), "cache": cache}
        merge = {"weights": shape.weights * size}
        phases = [Phase(name="training", parts=training), Phase(name="evaluation", parts=evaluation)]
        return Estimate(phases=phases if full else [*phases, Phase(name="merge", parts=merge)])

    def _activations(self, tokens: int, *, kept: bool) -> int:
        """What a layer computes with, and what each layer keeps for the backward pass."""
        shape = self.shape
        of_a_layer = tokens * (16 * shape.hidden + 6 * shape.intermediate) * 2
        return of_a_layer + shape.layers * tokens * shape.hidden * 2 if kept else of_a_layer // 4

    def _words(self) -> int:
        return 12 * self.shape.vocabulary


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(plugins.load({}))


PlannerFor = Callable[..., Planner]
PlanFor = Callable[..., Plan]


@pytest.fixture
def planner_for(registry: Registry, tmp_path: Path) -> PlannerFor:
    """The planner for a set-up: rows, kind, GPUs, GB of each, size of the model in billions."""

    def planner(rows: int, kind: Any, gpus: int, memory: float, billions: float, **more: Any) -> Planner:
        about = {"aim": USUAL_AIM[kind], "row_tokens": 300.0, "long_row": 1000, "positions": 8192} | more
        hardware = Hardware(gpus=gpus, memory=memory, cores=8)
        shape = typical.shape(billions * 1e9)
        situation = Situation(kind=kind, rows=rows, hardware=hardware, parameters=shape.weights, **about)
        base = BaseModel(name=f"{billions}B", path=tmp_path, name_or_path="", revision="", origin="")
        costs = InClosedForm(base=base, registry=registry, situation=situation, shape=shape)
        return Planner(situation=situation, costs=costs, registry=registry)

    return planner


@pytest.fixture
def plan_for(planner_for: PlannerFor) -> PlanFor:
    """The plan for a set-up."""
    return lambda *setup, **more: deciding.decide(planner_for(*setup, **more))
