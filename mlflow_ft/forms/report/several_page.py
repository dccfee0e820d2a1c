"""The page about several runs: which is the best, what differed, scores, curves, and answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.gates import Gates
from mlflow_ft.data import drawings
from mlflow_ft.forms.card.markdown import clean, number
from mlflow_ft.forms.report import several
from mlflow_ft.forms.report.page import SHOWN, TEMPLATES, marked, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlflow_ft.forms.report.facts import Facts
    from mlflow_ft.forms.report.several import Asked, Line

CURVES = {
    "eval/loss": "held-out loss by optimizer step (nats per learned token)",
    "train/loss": "training loss by optimizer step (nats per learned token)",
}
LONGEST_VALUE = 120
"""Characters of a setting's value."""


def as_page(runs: Sequence[Facts], gates: Gates) -> str:
    """The page about 2 to 12 runs; `gates` know which scores are better when lower."""
    scored = several.lines(runs, gates)
    words, tone = several.verdict(runs, scored)
    asked = several.answers(runs)
    return drawings.page(
        "several.html",
        TEMPLATES,
        title=f"{len(runs)} runs compared",
        verdict=words,
        tone=tone,
        letters=several.LETTERS[: len(runs)],
        runs=[_run(one) for one in runs],
        differing=list(_differing(runs)),
        scores=[_score(line) for line in scored],
        wins=several.wins(runs, scored, gates),
        plots=list(_plots(runs)),
        answers=[_answer(one) for one in asked[:SHOWN]],
        answered=len(asked),
    )


def _run(facts: Facts) -> Mapping[str, str]:
    return {
        "name": clean(facts.run.info.run_name or facts.run.info.run_id),
        "id": facts.run.info.run_id,
        "method": facts.run.data.params.get("cfg.method", ""),
        "status": facts.run.info.status,
        "started": facts.started,
        "verdict": facts.tags.get("mlflow_ft.worse") or (facts.verdict.words if facts.verdict else ""),
    }


def _differing(runs: Sequence[Facts]) -> Iterator[tuple[str, list[str]]]:
    for name, values in several.differing(runs):
        yield name, [clean(value, longest=LONGEST_VALUE) for value in values]


def _score(line: Line) -> Mapping[str, Any]:
    values = [number(value) if value is not None else several.ABSENT for value in line.values]
    return {"name": line.name, "values": values, "best": line.best, "changes": line.changes}


def _plots(runs: Sequence[Facts]) -> Iterator[Mapping[str, str]]:
    for name, caption in CURVES.items():
        curves = dict(several.drawn(runs, name))
        if any(len(curve) > 1 for curve in curves.values()):
            yield {"svg": drawings.svg(name, partial(_draw, curves=curves), whole=False), "caption": caption}


def _draw(axes: Axes, *, curves: Mapping[str, Mapping[int, float]]) -> None:
    for letter, curve in curves.items():
        place = several.LETTERS.index(letter)
        marker = "o" if len(curve) < 30 else None
        style = "-" if place < len(drawings.SERIES) else "--"
        colour = drawings.SERIES[place % len(drawings.SERIES)]
        axes.plot(list(curve), list(curve.values()), style, color=colour, label=letter, marker=marker, markersize=3)
    axes.legend(frameon=False, labelcolor=drawings.INK, fontsize=8, ncols=6)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")


def _answer(asked: Asked) -> Mapping[str, Any]:
    expected = shortened(asked.expected)
    sides = [
        {"pieces": marked(shortened(text), expected), "tone": "ok" if exact else "warn" if expected else ""}
        for text, exact in zip(asked.answers, asked.exact, strict=True)
    ]
    return {"prompt": shortened(asked.prompt), "expected": expected, "sides": sides}
