"""The rewards that ship inside, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.builtin import rewards
from mlflow_ft.registry import Registry


def said(*texts: Any) -> list[list[dict[str, Any]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("72", "72", True),
        ("So it is 72.", "72", True),
        ("So it is\n 72 \n", 72, True),
        ("so it is New  York", "New York", True),
        ("172", "72", False),
        ("72 or 73", "72", False),
        ("", "72", False),
        ("72", "", False),
        ("York", "New York", False),
        ("It is 72", "Half of 144 is 72.\n#### 72", True),
        ("It is 144", "Half of 144 is 72.\n#### 72", False),
    ],
)
def test_the_answer_is_at_the_end(text: str, wanted: Any, *, right: bool) -> None:
    assert rewards.exact_answer(said(text), answer=[wanted]) == [float(right)]


def test_the_right_answer_is_in_a_column_with_one_of_several_names() -> None:
    for name in ("answer", "solution", "ground_truth", "target", "expected"):
        assert rewards.exact_answer(said("a", "b"), **{name: ["b", "b"], "other": ["a", "a"]}) == [0.0, 1.0]
    assert rewards.exact_answer(said("a", "b"), solution=["b", "b"], answer=["a", "a"]) == [1.0, 0.0]


def test_nothing_is_said_of_rows_without_an_answer() -> None:
    assert rewards.exact_answer(said("a", "b"), answer=[None, "b"]) == [None, 1.0]
    assert rewards.exact_answer(said("a", "b")) == [None, None]


@pytest.mark.parametrize(("text", "valid"), [('{"a": 1}', True), ("[NaN]", False), ("a", False), (None, False)])
def test_json_is_json(text: Any, *, valid: bool) -> None:
    assert rewards.valid_json(said(text)) == [float(valid)]


def test_the_last_turn_counts() -> None:
    turns = [{"role": "assistant", "content": "{}"}, {"role": "assistant", "content": "no"}]
    assert rewards.valid_json([turns]) == [0.0]


def test_they_are_registered() -> None:
    registry = Registry(plugins.load({"MLFLOW_FT_PLUGINS": ""}))
    assert {"exact-answer", "valid-json"} <= {reward.name for reward in registry.rewards}
    assert registry.rewards["exact-answer"].score(completions=said("1"), answer=["1"], prompts=[[]]) == [1.0]
