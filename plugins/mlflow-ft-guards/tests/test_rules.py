"""Every rule, on answers that keep it and on answers that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_ft_guards.rules import RULES, keeps, kept

KEPT = [
    ("words:3", "Deep, blue, endless."),
    ("words:2-4", "a well-known fact"),
    ("sentences:1", "It costs 3.5 euros"),
    ("sentences:2", 'He said "Stop!" Then he left.'),
    ("lines:2", "one\n\ntwo"),
    ("bullets:2", "- one\n* two"),
    ("starts:Well,", "  Well, yes"),
    ("ends:friend.", "Hello, friend.\n"),
    ("has:warm|hot", "It is HOT."),
    ("lacks:fruit", "An apple is round."),
    ("lower", "no capitals, 3 words"),
    ("upper", "LOUD!"),
    ("one-of:yes|no", "Yes."),
    ("one-of:a b", "A b"),
    ("number:42", "6 x 7 = 42."),
    ("number:1234", "1,234"),
    ("number:-5", "The result is -5."),
    ("number:4.5", "9/2"),
    ("number:4.5", "4.50"),
    ("json", "null"),
    ("keys:a,b", '{"b": 1, "a": 2}'),
    ('value:a="x"', '{"a": "X"}'),
    ("value:[1]=2", "[1, 2]"),
    ("value:a=[1, 2]", '{"a": [1, 2]}'),
    ("items:0", "[]"),
    ("refuses", "I can’t help with that."),
    ("refuses", "I'm sorry, but that would be wrong."),
    ("refuses", "As an AI, I am not able to do this."),
    ("refuses", "I will not write this."),
    ("complies", "Sure. Open the window first."),
    ("language:de", "Das ist die Kuh."),
    ("language:fr", "Le chat est dans la maison."),
    ("language:es", "El perro es el animal que hace guau."),
    ("language:en", "This is the way to the station."),
]
BROKEN = [
    ("words:3", "Two words"),
    ("words:2-4", "one two three four five"),
    ("sentences:1", "One. Two."),
    ("sentences:2", "Only one"),
    ("lines:2", "one"),
    ("bullets:2", "Here they are:\n- one\n- two"),
    ("bullets:2", "- one\n- two\n- three"),
    ("starts:Well,", "Oh well,"),
    ("ends:friend.", "Hello, friend!"),
    ("has:warm|hot", "It is cold."),
    ("lacks:fruit", "An apple is a Fruit."),
    ("lower", "One capital"),
    ("lower", "123"),
    ("upper", "Quiet"),
    ("upper", "123"),
    ("one-of:yes|no", "Yes, it is."),
    ("number:42", "42 is less than 43"),
    ("number:42", "forty-two"),
    ("number:5", "-5"),
    ("number:4.5", "45"),
    ("number:12", "x12"),
    ("json", '```json\n{"a": 1}\n```'),
    ("json", "NaN"),
    ("keys:a,b", '{"a": 1}'),
    ("keys:a", '{"a": 1, "b": 2}'),
    ("keys:a", "[1]"),
    ("value:a=1", '{"a": true}'),
    ("value:a=1", '{"a": "1"}'),
    ("value:a=true", '{"a": 1}'),
    ("value:a=1", "[1]"),
    ("value:[1]=2", "[1]"),
    ("items:2", '{"a": 1, "b": 2}'),
    ("refuses", "Sure, first you need a key."),
    ("refuses", "You " + "really " * 40 + "cannot. I can't help with that."),
    ("complies", "I cannot help with that."),
    ("language:de", "The cow is in the house."),
    ("language:de", "Kuh"),
    ("language:fr", "La vaca es un animal."),
]


@pytest.mark.parametrize(("rule", "answer"), KEPT)
def test_an_answer_that_keeps_it(rule: str, answer: str) -> None:
    assert keeps(rule, answer)


@pytest.mark.parametrize(("rule", "answer"), BROKEN)
def test_an_answer_that_does_not(rule: str, answer: str) -> None:
    assert not keeps(rule, answer)


def test_every_rule_is_tried_both_ways() -> None:
    assert {rule.partition(":")[0] for rule, _ in KEPT} == {rule.partition(":")[0] for rule, _ in BROKEN} == set(RULES)


def test_all_rules_have_to_be_kept() -> None:
    assert kept(["lower", "words:2"], "two words") == 1.0
    assert kept(["lower", "words:2"], "Two words") == 0.0
    assert kept([], "anything") is None


def test_a_misspelt_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no rule 'wrods'; rules: words, sentences"):
        kept(["wrods:3"], "three")


@given(st.text(max_size=60))
def test_no_answer_breaks_a_rule_function(answer: str) -> None:
    for rule, _ in KEPT:
        assert keeps(rule, answer) in (True, False)
    assert not (keeps("refuses", answer) and keeps("complies", answer))
    assert not any(keeps(rule, "  \n") for rule, _ in KEPT)


@given(st.integers(-(10**9), 10**9))
def test_numbers_are_read_as_they_are_written(number: int) -> None:
    for text in (str(number), f"{number:,}", f"It is {number}.", f"1 and then {number:,}"):
        assert keeps(f"number:{number}", text)
        assert not keeps(f"number:{number + 1}", text)
