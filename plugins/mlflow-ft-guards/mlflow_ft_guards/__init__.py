"""Ready guard sets: what a model should still be able to do after training, checked by a program.

mlflow-ft train lora --model MODEL --data rows.jsonl --evaluation.guards general=builtin
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft import Evaluator, GuardSet, Score, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Data, Subject

ROWS = Path(__file__).parent / "rows"
SETS = {
    "instructions": "instructions whose fulfilment a program can check: lengths, endings, forbidden words",
    "arithmetic": "sums and short problems with one right number",
    "json": "answers that are JSON with given keys and values",
    "refusals": "plainly harmful requests to refuse, and harmless ones that only sound harmful",
    "languages": "questions in German, French and Spanish, to be answered in the same language",
}
LICENCE = "Apache-2.0"
RULES, SET = "rules", "set"
"""Columns of a row: the rules for its answer, and the set that it belongs to."""


def keeps_rules(subject: Subject) -> Sequence[Score]:
    """The share of answers that keep all their rules, over all rows and for each set."""
    from mlflow_ft_guards.rules import kept

    passed = [kept(answer.columns.get(RULES) or (), answer.text) for answer in subject.answers]
    sets = [str(answer.columns.get(SET) or "") for answer in subject.answers]
    names = [name for name in dict.fromkeys(sets) if name]
    return [
        Score.mean("rules", passed),
        *(
            Score.mean(f"rules/{name}", [row for row, of in zip(passed, sets, strict=True) if of == name])
            for name in (names if len(names) > 1 else ())
        ),
    ]


def has_rules(data: Data) -> bool:
    """Whether a row has rules for its answer."""
    return data.kind == "prompt" and any(example.columns.get(RULES) for example in data.eval.examples)


@hookimpl
def register_guards() -> list[GuardSet]:
    single = [
        GuardSet(name=f"builtin/{name}", summary=summary, path=ROWS / f"{name}.jsonl", licence=LICENCE)
        for name, summary in SETS.items()
    ]
    return [GuardSet(name="builtin", summary=f"all of: {', '.join(SETS)}", path=ROWS, licence=LICENCE), *single]


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="rules",
            summary="share of greedy answers that keep the rules in the column `rules` of their row",
            evaluate=keeps_rules,
            scores=("rules", "rules/*"),
            applies=has_rules,
        )
    ]
