"""Several runs on one page: which is the best and whether that is shown, what differed, who is right on which row."""

from __future__ import annotations

import math
from typing import Any

import click
import pytest

from mlflow_ft import ConfigError
from mlflow_ft.cli.report import command
from mlflow_ft.config.gates import Gates
from mlflow_ft.forms import report
from mlflow_ft.forms.report import several
from mlflow_ft.values import Score
from tests.forms.test_report import HOSTILE, Page, answer, facts

ROWS = "digest of the held-out rows"


def run(*losses: float | None, rows: str = ROWS, **given: Any) -> report.Facts:
    """A run with a held-out loss for each row."""
    tuned = [Score.mean("loss", list(losses))] if losses else []
    return facts(base=tuned, tuned=tuned, aims=("loss",), rows={"loss": rows} if losses else {}, **given)


def verdict(*runs: report.Facts) -> tuple[str, str]:
    return several.verdict(runs, several.lines(runs, Gates()))


def words(*runs: report.Facts) -> str:
    return " ".join("".join(Page(report.comparison(runs, Gates())).words).split())


def test_the_best_run_is_named_when_a_test_shows_it() -> None:
    runs = [run(*[value] * 40) for value in (2.0, 1.0, 3.0)]
    assert verdict(*runs) == ("B is the best: its loss is better than that of every other run", "ok")
    assert words(*runs).startswith("3 runs compared")


def test_the_best_of_equals_is_not_called_better() -> None:
    noisy = [run(*[2.0 + (number + row) % 2 for row in range(39)]) for number in range(2)]
    said, tone = verdict(*noisy)
    assert ("not shown to be better" in said, tone) == (True, "warn")
    assert verdict(run(1.0, 2.0), run(1.0, 2.0))[0] == "No run is the best: two or more have the same loss"


def test_one_of_many_needs_more_evidence_than_one_of_two() -> None:
    """Better on 6 of 6 rows: enough against one run (1 in 64), too little against eleven."""
    better, worse = run(*[1.0] * 6), [run(*[2.0] * 6) for _ in range(11)]
    assert verdict(better, worse[0])[1] == "ok"
    assert verdict(better, *worse)[1] == "warn"


def test_other_rows_are_not_compared() -> None:
    runs = [run(1.0, 1.0, 1.0), run(5.0, 5.0, 5.0, rows="others")]
    assert verdict(*runs)[0] == "These runs were scored on different held-out rows: their loss cannot be compared"
    [line] = several.lines(runs, Gates())
    assert (line.best, list(line.changes)) == (None, ["other rows"])
    assert several.wins(runs, [line], Gates()) == []
    assert "cannot be compared" in verdict(run(), run(1.0))[0]


def test_rows_are_counted_for_the_run_that_is_best_alone() -> None:
    runs = [run(1.0, 2.0, 3.0, 1.0, None), run(2.0, 1.0, 3.0, 3.0, 1.0)]
    [row] = several.wins(runs, several.lines(runs, Gates()), Gates())
    assert (list(row.alone), row.shared) == ([2, 1], 1)
    accuracy = [facts(tuned=[Score.mean("exact_match", rows)], rows={"exact_match": ROWS}) for rows in ([1, 0], [0, 0])]
    [row] = several.wins(accuracy, several.lines(accuracy, Gates()), Gates())
    assert (list(row.alone), row.shared) == ([1, 0], 1)


def test_only_what_differs_is_listed() -> None:
    params = {"cfg.method": "lora", "cfg.training.epochs": "1", "cfg.run.name": "first", "note": "x"}
    first = run(params=params, tags={"mlflow_ft.version.torch": "2.13", "mlflow_ft.git_commit": "a", "own": "1"})
    second = run(
        params=params | {"cfg.training.epochs": "3", "cfg.run.name": "second", "cfg.plugins.judge.model": "m"},
        tags={"mlflow.mlflow_ft.versions": "torch 2.12", "mlflow_ft.git_commit": "a", "own": "2"},
    )
    assert several.differing([first, second]) == [
        ("training.epochs", ["1", "3"]),
        ("torch (version)", ["2.13", "2.12"]),
        ("plugins.judge.model", ["-", "m"]),
    ]
    assert "Nothing that the runs recorded" in words(first, first)


def test_answers_that_differ_come_first() -> None:
    same = answer(prompt="same", after=True)
    sides = [
        [same, answer(prompt="p", after=right), answer(prompt="only", tuned=str(right))] for right in (True, False)
    ]
    found = several.answers([run(answers=rows) for rows in (sides[0], sides[1][:2])])
    assert [(one.prompt, list(one.exact)) for one in found] == [("p", [True, False]), ("same", [True, True])]


def test_hostile_text_and_numbers_that_are_none() -> None:
    made = run(
        math.nan, math.inf, None,
        answers=[answer(prompt=HOSTILE, expected=HOSTILE, tuned=HOSTILE), answer(expected="", prompt="free")],
        params={"cfg.method": HOSTILE, f"cfg.{HOSTILE}": HOSTILE},
        tags={"mlflow_ft.base_origin": HOSTILE, "mlflow_ft.worse": HOSTILE},
        curves={"eval/loss": {1: math.nan, 2: 1.0, 3: 2.0}, "train/loss": {1: 1.0}},
    )  # fmt: skip
    made.run.info.run_name = HOSTILE
    page = Page(report.comparison([made, run(1.0, 2.0, 3.0, curves={"eval/loss": {2: 1.0}})], Gates()))
    assert "script" not in page.seen
    assert page.seen.count("svg") == 1
    assert "".join(page.words).count("{{ 7 * 7 }}") >= 6


def test_twelve_runs_have_a_curve_each() -> None:
    runs = [run(1.0 + number, curves={"eval/loss": {1: 2.0, 2: 1.0 + number}}) for number in range(12)]
    text = report.comparison(runs, Gates())
    legend = [word for word in "".join(Page(text).words).split() if word in several.LETTERS]
    assert set(legend) == set(several.LETTERS)
    assert text.count("stroke-dasharray") >= 6


@pytest.mark.parametrize(
    ("named", "log", "reason"),
    [
        ([], False, "no run given"),
        (["a", "b", "a"], False, "run a is given twice"),
        ([str(number) for number in range(13)], False, "13 runs are too many"),
        (["a", "b"], True, "--log goes with one run"),
    ],
)
def test_a_wrong_question_is_refused(named: list[str], *, log: bool, reason: str) -> None:
    assert isinstance(command, click.Command)
    assert command.callback is not None
    with pytest.raises(ConfigError, match=reason):
        command.callback(named=named, run_id="", out=None, log=log)
