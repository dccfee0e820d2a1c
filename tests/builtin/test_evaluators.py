"""Scores by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft.builtin import evaluators
from mlflow_ft.rows import Example
from mlflow_ft.values import Answer


def scores(results: Any) -> dict[str, float]:
    return {score.name: score.value for score in results}


def answer(text: str, expected: str, *, finished: bool = True) -> Answer:
    return Answer(prompt=(), text=text, expected=expected, finished=finished)


def held_out(*contents: Any) -> Any:
    examples = [Example(messages=({"role": "assistant", "content": content},)) for content in contents]
    return SimpleNamespace(eval=SimpleNamespace(examples=examples))


def test_the_loss_is_a_mean_over_tokens() -> None:
    results = evaluators.held_out_loss(SimpleNamespace(losses=[(2.0, 1), (3.0, 9), (0.0, 0)]))  # type: ignore[arg-type]  # stands in for a Subject
    assert scores(results) == pytest.approx({"loss": 0.5, "perplexity": math.exp(0.5)})
    assert results[0].rows == (2.0, pytest.approx(1 / 3), None)
    assert results[0].coverage == pytest.approx(2 / 3)


def test_a_loss_without_tokens_or_beyond_floats() -> None:
    nothing = evaluators.held_out_loss(SimpleNamespace(losses=[]))  # type: ignore[arg-type]  # stands in for a Subject
    assert all(math.isnan(value) for value in scores(nothing).values())
    huge = evaluators.held_out_loss(SimpleNamespace(losses=[(1e6, 1)]))  # type: ignore[arg-type]  # stands in for a Subject
    assert math.isfinite(scores(huge)["perplexity"])


def test_exact_match_forgives_white_space_at_the_ends_only() -> None:
    answers = [answer(" a b\n", "a b"), answer("a  b", "a b"), answer("A b", "a b"), answer("x", "x", finished=False)]
    results = evaluators.exact_match(SimpleNamespace(answers=answers))  # type: ignore[arg-type]  # stands in for a Subject
    assert scores(results) == {"exact_match": 0.5, "finished": 0.75}
    assert results[0].rows == (1.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null]}', True),
        (" 3 ", True),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ("-Infinity", False),
        ("", False),
        ('{"a": 1} and more', False),
        ("[" * 100_000, False),
    ],
)
def test_json_by_the_strict_grammar(text: str, *, valid: bool) -> None:
    assert evaluators.is_json(text) is valid
    results = evaluators.valid_json(SimpleNamespace(answers=[answer(text, "{}")]))  # type: ignore[arg-type]  # stands in for a Subject
    assert scores(results) == {"valid_json": float(valid)}


def test_what_applies() -> None:
    assert evaluators.expects_json(held_out('{"a": 1}', " [2]"))
    assert not evaluators.expects_json(held_out('{"a": 1}', "text"))
    assert not evaluators.expects_json(held_out("3"))
    assert not evaluators.expects_json(held_out())
    assert not evaluators.expects_json(held_out(None))
    assert evaluators.has_answers(held_out(None, "text"))
    assert not evaluators.has_answers(held_out(None))


def test_pairs_whose_chosen_answer_is_found_better() -> None:
    results = evaluators.preferred(SimpleNamespace(pairs=[(-1.0, -3.0), (-2.0, -2.0), (-4.0, -1.0)]))  # type: ignore[arg-type]  # stands in for a Subject
    assert scores(results) == pytest.approx({"preference_accuracy": 1 / 3, "preference_margin": -1 / 3})
    assert results[0].rows == (1.0, 0.0, 0.0)


def test_the_mean_of_every_reward_counts_what_could_be_judged() -> None:
    values = {"length": [1.0, None, 2.0], "format": [0.0, 1.0, 1.0]}
    subject = SimpleNamespace(rewards=values, weighted_reward=[2.0, 0.5, 4.0])
    results = evaluators.rewarded(subject)  # type: ignore[arg-type]  # stands in for a Subject
    assert scores(results) == pytest.approx({"reward/length": 1.5, "reward/format": 2 / 3, "weighted_reward": 6.5 / 3})
    assert [score.coverage for score in results] == pytest.approx([2 / 3, 1.0, 1.0])
    assert list(evaluators.rewarded(SimpleNamespace(rewards={}))) == []  # type: ignore[arg-type]  # stands in for a Subject


def test_rewards_apply_where_a_model_can_be_asked() -> None:
    def rows(kind: str, *contents: Any) -> Any:
        return SimpleNamespace(kind=kind, eval=held_out(*contents).eval)

    assert evaluators.has_prompts(rows("prompt"))
    assert evaluators.has_prompts(rows("conversation", "text"))
    assert not evaluators.has_prompts(rows("conversation", None))


def test_the_losses_of_good_and_of_bad_answers_are_separate() -> None:
    examples = [SimpleNamespace(label=label) for label in (True, False, True, False)]
    subject = SimpleNamespace(
        losses=[(2.0, 1), (9.0, 3), (4.0, 2), (0.0, 0)], data=SimpleNamespace(eval=SimpleNamespace(examples=examples))
    )
    good, bad, margin = evaluators.loss_by_label(subject)  # type: ignore[arg-type]  # stands in for a Subject
    assert (good.name, good.value, good.rows) == ("good_loss", 2.0, (2.0, 2.0))
    assert (bad.name, bad.value, bad.rows) == ("bad_loss", 3.0, (3.0,))
    assert (margin.name, margin.value) == ("label_margin", pytest.approx(bad.value - good.value))
    assert margin.rows == pytest.approx((-3.0, 9.0, -3.0, None))  # of three scored rows two are good


def test_answers_of_one_label_have_their_own_likelihood_as_margin() -> None:
    assert evaluators.margins([(2.0, 1), (3.0, 1)], [True, True]) == [-2.0, -3.0]
    assert evaluators.margins([(2.0, 1), (3.0, 1)], [False, False]) == [2.0, 3.0]
    assert evaluators.margins([(2.0, 0)], [None]) == [None]
