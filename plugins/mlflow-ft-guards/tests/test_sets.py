"""The rows are right: every expected answer keeps its rules, every sum is computed again, other answers fail."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mlflow_ft_guards
import pytest
from mlflow_ft_guards import ROWS, SETS
from mlflow_ft_guards.rules import FUNCTION_WORDS, keeps, kept

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: base ** int(exponent),
}


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


ALL = [row for name in SETS for row in rows_of(name)]


def value(node: ast.expr, source: str) -> Fraction:
    """The exact value of a sum; numbers are read from their text, so that 4.5 is 9/2."""
    if isinstance(node, ast.BinOp):
        return Fraction(OPERATORS[type(node.op)](value(node.left, source), value(node.right, source)))
    assert isinstance(node, ast.Constant), ast.dump(node)
    return Fraction(ast.get_source_segment(source, node) or "")


def test_every_file_is_a_set_of_20_to_60_rows() -> None:
    assert {file.stem for file in ROWS.glob("*.jsonl")} == set(SETS)
    for name in SETS:
        assert 20 <= len(rows_of(name)) <= 60
        assert {row["set"] for row in rows_of(name)} == {name}
    prompts = [row["prompt"] for row in ALL]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("row", ALL, ids=lambda row: row["prompt"][:50])
def test_the_expected_answer_keeps_the_rules_and_no_answer_does_not(row: dict[str, Any]) -> None:
    broken = [rule for rule in row["rules"] if not keeps(rule, row["answer"])]
    assert not broken
    assert kept(row["rules"], "") == 0.0
    assert kept(row["rules"], "I am here for you, and it is a fine day. Let us talk.\n\n- or not") == 0.0


@pytest.mark.parametrize("row", rows_of("arithmetic"), ids=lambda row: row["prompt"][:50])
def test_every_sum_is_right(row: dict[str, Any]) -> None:
    tree = ast.parse(row["expression"], mode="eval").body
    assert Fraction(row["answer"]) == value(tree, row["expression"])
    assert row["rules"] == [f"number:{row['answer']}"]


@pytest.mark.parametrize("row", [row for row in rows_of("arithmetic") if "What is" in row["prompt"]], ids=str)
def test_a_sum_asks_for_the_numbers_that_are_computed_with(row: dict[str, Any]) -> None:
    asked = {Fraction(digits) for digits in numbers(row["prompt"])}
    used = {value(node, row["expression"]) for node in constants(row["expression"])}
    assert asked & used


def numbers(text: str) -> list[str]:
    import re

    return re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))


def constants(expression: str) -> list[ast.expr]:
    return [node for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Constant)]


def test_most_answers_fit_their_own_row_only() -> None:
    """A rule that any answer keeps measures nothing."""
    for row in ALL:
        if row["set"] == "refusals":
            continue
        others = [other["answer"] for other in rows_of(row["set"]) if other is not row]
        fitting = sum(kept(row["rules"], answer) == 1.0 for answer in others)
        assert fitting <= len(others) / 3, row["prompt"]


def test_refusals_have_both_sides() -> None:
    rules = [row["rules"][0] for row in rows_of("refusals")]
    assert rules.count("refuses") >= 20
    assert rules.count("complies") >= 10
    for row in rows_of("refusals"):
        other = "complies" if row["rules"][0] == "refuses" else "refuses"
        assert not keeps(other, row["answer"])


def test_there_are_three_languages_besides_english() -> None:
    found = [rule for row in rows_of("languages") for rule in row["rules"] if rule.startswith("language:")]
    assert {rule: found.count(rule) for rule in found} == {"language:de": 12, "language:fr": 12, "language:es": 12}
    assert {"de", "fr", "es"} < set(FUNCTION_WORDS)


def test_contract(plugin_contract: Callable[..., None]) -> None:
    plugin_contract(mlflow_ft_guards, without={"evaluators": "it scores rows with rules only: test_run.py"})
