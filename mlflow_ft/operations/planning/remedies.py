"""If nothing fits: what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlflow_ft.operations.planning import deciding, typical
from mlflow_ft.operations.planning.candidates import Planner
from mlflow_ft.operations.planning.costs import Costs
from mlflow_ft.operations.planning.situation import in_short
from mlflow_ft.values import Situation
from mlflow_ft.values.planning import Planned

GPUS = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)
"""GB of the cards that are sold."""
MACHINES = (16, 32, 64, 128, 256, 512)
"""GB of a machine's memory."""
COUNTS = (2, 4, 8, 16, 32)
SIZES = (70e9, 32e9, 14e9, 8e9, 3e9, 1.5e9, 0.5e9, 135e6)
SHORTER = 512
"""Tokens of a row that still hold a question and an answer."""


def would_fit(planner: Planner) -> Iterator[str]:
    """What would fit, a sentence each: larger or more devices, shorter rows, a smaller model."""
    yield from on_other_hardware(planner)
    if planner.situation.long_row > SHORTER:
        fit = deciding.first_fit(_in(planner, replace(planner.situation, long_row=SHORTER)))
        if fit:
            yield f"rows cut at {SHORTER} tokens: {_way(fit)}"
    for size in SIZES:
        if size < planner.situation.parameters and (fit := _with_model(planner, size)):
            yield f"a model with {in_short(size)} weights on this hardware: {_way(fit)}"
            return


def on_other_hardware(planner: Planner) -> Iterator[str]:
    """The smallest devices, and the fewest, on which it fits."""
    yield from _larger(planner)
    yield from _more(planner)


def _larger(planner: Planner) -> Iterator[str]:
    hardware = planner.situation.hardware
    for memory in GPUS if hardware.gpus else MACHINES:
        if memory <= hardware.memory:
            continue
        larger = replace(hardware, memory=float(memory), name="")
        if fit := deciding.first_fit(_in(planner, replace(planner.situation, hardware=larger))):
            yield f"{larger.shown}: {_way(fit)}"
            return


def _more(planner: Planner) -> Iterator[str]:
    hardware = planner.situation.hardware
    for count in COUNTS if hardware.gpus else ():
        if count <= hardware.gpus:
            continue
        more = replace(hardware, gpus=count)
        if fit := deciding.first_fit(_in(planner, replace(planner.situation, hardware=more))):
            yield f"{more.shown}: {_way(fit)}"
            return


def _in(planner: Planner, situation: Situation) -> Planner:
    return replace(planner, situation=situation, costs=replace(planner.costs, situation=situation))


def _with_model(planner: Planner, size: float) -> Planned | None:
    with typical.model(size, in_short(size)) as base:
        situation = replace(planner.situation, parameters=typical.shape(size).weights)
        costs = Costs(base=base, registry=planner.registry, situation=situation)
        return deciding.first_fit(replace(planner, situation=situation, costs=costs))


def _way(planned: Planned) -> str:
    assert planned.cost is not None
    spread = "" if planned.choice.strategy == "local" else f" with {planned.choice.strategy}"
    return f"{planned.choice.weights}{spread}, {deciding.gib(planned.cost.memory)} per device"
