"""A plan as text for people, and as JSON for programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from mlflow_ft.config.explain import shown
from mlflow_ft.operations.planning import recipe
from mlflow_ft.operations.planning.deciding import gib
from mlflow_ft.operations.planning.duration import UTILISATION, tflops
from mlflow_ft.operations.planning.situation import in_short
from mlflow_ft.progress import Progress
from mlflow_ft.values import Plan
from mlflow_ft.values.planning import AIMS, Planned

DAY = 24
GIVEN = "given"
MEMORY = "memory"
"""The rule that gives reasons why something does not fit."""


def show(plan: Plan, *, file: str, is_written: bool) -> None:
    """Print the plan on stdout."""
    output = Progress(stream=sys.stdout)
    situation = plan.situation
    output.facts(
        {
            "data": f"{situation.rows:,} {situation.kind} rows of about {situation.row_tokens:,.0f} tokens "
            f"(99 of 100 have at most {situation.long_row:,})",
            "aim": f"{situation.aim}: {AIMS[situation.aim]}",
            "model": f"{in_short(situation.parameters)} weights",
            "hardware": situation.hardware.shown,
        }
    )
    for remark in plan.remarks:
        output.say(f"note: {remark}")
    output.say("")
    _decision(plan, output)
    if plan.recommended and plan.alternatives:
        _alternatives(plan, output)
    for name, cost in plan.elsewhere.items():
        output.say(f"  or {name}: {cost}")
    if plan.recommended:
        output.say("")
        output.say(f"{file} is written. Train with:" if is_written else f"With --out {file}, train with:")
        output.say(f"  {recipe.command(plan, plan.recommended, file=file)}")


def _decision(plan: Plan, output: Progress) -> None:
    planned = plan.recommended
    if planned is None:
        output.say("Nothing fits:")
        for reason in plan.reasons:
            if reason.rule == MEMORY:
                output.say(f"  - {reason.text}")
        output.say("What would fit:" if plan.would_fit else "Nothing that was tried would fit either.")
        for sentence in plan.would_fit:
            output.say(f"  - {sentence}")
        return
    assert planned.cost is not None
    cost = planned.cost
    largest = sorted(cost.parts.items(), key=lambda part: -part[1])[:3]
    output.say(f"Recommended: {named(planned)}")
    output.facts(
        {
            "memory": f"{gib(cost.memory)} per device in {cost.phase}, of {gib(cost.available)} that it can use "
            f"({', '.join(f'{name} {gib(size)}' for name, size in largest)})",
            "time": f"{duration(cost.hours)} of training, roughly "
            f"({UTILISATION:.0%} of {tflops(plan.situation.hardware):.3g} TFLOP/s on each device)",
        }
    )
    output.say("because (mlflow-ft show plan_rules has the sources of these rules):")
    for reason in plan.reasons:
        output.say(f"  - {reason.text} ({reason.rule})")
    for sentence in plan.before:
        output.say(f"  First: {sentence}")
    rows = [
        (path, shown(value), planned.reasons[path].text if path in planned.reasons else GIVEN)
        for path, value in recipe.settings(planned).items()
        if path != "method"
    ]
    output.table("Settings", ("setting", "value", "because"), rows, text=(0, 2))


def _alternatives(plan: Plan, output: Progress) -> None:
    rows = []
    for planned in plan.alternatives:
        cost = planned.cost
        memory = f"{'over ' if cost.at_least else ''}{gib(cost.memory)}" if cost else ""
        verdict = planned.refused or (
            "fits" if planned.fits else f"does not fit in {gib(cost.available)}" if cost else ""
        )
        rows.append((named(planned), memory, duration(cost.hours) if cost else "", verdict))
    output.table("Alternatives", ("method", "memory", "time", ""), rows, text=(0, 3))


def named(planned: Planned) -> str:
    """The way to train in a few words: `dpo with qlora, fsdp`."""
    name = planned.command
    name += "" if planned.choice.weights == name else f" with {planned.choice.weights}"
    return name if planned.choice.strategy == "local" else f"{name}, {planned.choice.strategy}"


def duration(hours: float) -> str:
    """A rough number of hours."""
    if hours < 1 / 60:
        return "under a minute"
    if hours < 2:
        return f"about {hours * 60:.0f} minutes"
    return f"about {hours:.0f} hours" if hours < 2 * DAY else f"about {hours / DAY:,.0f} days"


def as_dict(plan: Plan, *, file: str) -> dict[str, Any]:
    """The plan as JSON; `fits` is false if nothing does."""
    situation = asdict(plan.situation)
    situation["columns"] = sorted(plan.situation.columns)
    del situation["choice"]
    return {
        "fits": plan.recommended is not None,
        "situation": situation,
        "recommended": _planned(plan, plan.recommended, file=file) if plan.recommended else None,
        "reasons": [asdict(reason) for reason in plan.reasons],
        "before": list(plan.before),
        "alternatives": [_planned(plan, planned, file=file) for planned in plan.alternatives],
        "elsewhere": dict(plan.elsewhere),
        "would_fit": list(plan.would_fit),
        "remarks": list(plan.remarks),
    }


def _planned(plan: Plan, planned: Planned, *, file: str) -> dict[str, Any]:
    return {
        "method": planned.command,
        "objective": planned.choice.method,
        "weights": planned.choice.weights,
        "strategy": planned.choice.strategy,
        "fits": planned.fits,
        "refused": planned.refused,
        "cost": asdict(planned.cost) if planned.cost else None,
        "settings": recipe.settings(planned),
        "reasons": {path: asdict(reason) for path, reason in planned.reasons.items() if path in planned.settings},
        "command": recipe.command(plan, planned, file=file),
    }
