"""The decision: the first way to train that the rules advise and that fits, and what else there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_ft.errors import PluginError
from mlflow_ft.operations.planning import advised
from mlflow_ft.operations.planning.advised import Advised
from mlflow_ft.operations.planning.candidates import ESTIMATE, Planner
from mlflow_ft.values import Choice, Plan
from mlflow_ft.values.planning import Planned, Reason

GIB, MIB = 2**30, 2**20


def decide(planner: Planner, *, remarks: Sequence[str] = ()) -> Plan:
    """The plan for the planner's situation.

    Raises:
        PluginError: a rule failed, or none says how to train.
    """
    advice = advised.ask(planner.registry, planner.situation)
    methods, weights, strategies = (advice.names(field) for field in ("methods", "weights", "strategies"))
    if not (methods and weights and strategies):
        raise PluginError(
            "no rule says how to train in this situation",
            hint="`mlflow-ft plugins` lists the plugins, one of which must bring rules",
        )
    tried: list[Planned] = []
    recommended = next(_fitting(planner, methods[0], weights, strategies, tried), None)
    alternatives = list(_others(planner, recommended, methods, weights, strategies, tried))
    return Plan(
        situation=planner.situation,
        recommended=recommended,
        reasons=list(dict.fromkeys(_reasons(advice, recommended, tried, methods[0]))),
        before=advice.before,
        alternatives=alternatives,
        elsewhere=advice.elsewhere,
        remarks=list(remarks),
    )


def first_fit(planner: Planner) -> Planned | None:
    """The first way that fits, without its reasons and alternatives."""
    advice = advised.ask(planner.registry, planner.situation)
    methods, weights, strategies = (advice.names(field) for field in ("methods", "weights", "strategies"))
    return next(_fitting(planner, methods[0], weights, strategies, []), None)


def _fitting(
    planner: Planner, method: str, weights: Sequence[str], strategies: Sequence[str], tried: list[Planned]
) -> Iterator[Planned]:
    """The ways that fit, preferred first; all that were tried are added to `tried`."""
    for trains in weights:
        for strategy in strategies:
            planned = planner.planned(Choice(method=method, weights=trains, strategy=strategy))
            tried.append(planned)
            if planned.fits:
                yield planned


def _others(
    planner: Planner,
    recommended: Planned | None,
    methods: Sequence[str],
    weights: Sequence[str],
    strategies: Sequence[str],
    tried: Sequence[Planned],
) -> Iterator[Planned]:
    """What else could train: the same method with other weights, then other methods with the same weights.

    Each once, with the first strategy that fits, or else the one that needs the least.
    """
    for trains in weights:
        if recommended is None or trains != recommended.choice.weights:
            ways = [planned for planned in tried if planned.choice.weights == trains]
            if not ways:
                ways = []
                next(_fitting(planner, methods[0], [trains], strategies, ways), None)
            yield _best(ways)
    for method in methods[1:]:
        if recommended is not None:
            yield planner.planned(
                Choice(method=method, weights=recommended.choice.weights, strategy=recommended.choice.strategy)
            )


def _best(ways: Sequence[Planned]) -> Planned:
    def order(planned: Planned) -> tuple[bool, bool, int]:
        cost = planned.cost
        return (not planned.fits, cost is None, 0 if planned.fits or cost is None else cost.memory)

    return min(ways, key=order)


def _reasons(advice: Advised, recommended: Planned | None, tried: Sequence[Planned], method: str) -> Iterator[Reason]:
    """Why this method, these weights and this strategy; and why not what the rules prefer."""
    yield advice.reason("methods", method)
    weights = list(dict.fromkeys(planned.choice.weights for planned in tried))
    for trains in weights:
        ways = [planned for planned in tried if planned.choice.weights == trains]
        if trains == weights[0]:
            yield advice.reason("weights", trains)
        if not any(planned.fits for planned in ways):
            yield Reason(rule="memory", text=does_not_fit(_best(ways)), source=ESTIMATE)
        elif trains != weights[0]:
            yield advice.reason("weights", trains)
    if recommended is None:
        return
    for planned in tried:
        if planned.choice.weights == recommended.choice.weights and not planned.fits:
            yield Reason(rule="memory", text=does_not_fit(planned), source=ESTIMATE)
    yield advice.reason("strategies", recommended.choice.strategy)


def does_not_fit(planned: Planned) -> str:
    """Why a way is not taken, in a sentence."""
    way = planned.choice.weights + ("" if planned.choice.strategy == "local" else f" with {planned.choice.strategy}")
    if planned.cost is None:
        return f"{way} is not possible: {planned.refused}"
    cost = planned.cost
    least = "at least " if cost.at_least else ""
    return f"{way} needs {least}{gib(cost.memory)} per device in {cost.phase}, of {gib(cost.available)} that it can use"


def gib(size: int) -> str:
    """A size in GiB, or in MiB where it is small, for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"
