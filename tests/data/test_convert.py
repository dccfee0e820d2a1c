from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.data import convert
from mlflow_ft.errors import SHOWN_PROBLEMS, ConfigError, DataError
from mlflow_ft.rows import Example, Row
from mlflow_ft.registry import Registry

LOADED = plugins.load({})
REGISTRY = Registry(LOADED)
USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
MESSAGES = {"messages": [USER, ANSWER]}
ALPACA = {"instruction": "ask", "input": "", "output": "say"}
PAIR = {"prompt": "ask", "completion": "say"}


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(values=one, file="rows.jsonl", line=number) for number, one in enumerate(values, 1)]


def recognise(*values: dict[str, Any], name: str = "auto") -> str:
    return convert.recognise(rows(*values), name=name, plugins=LOADED, registry=REGISTRY).name


def converted(name: str, values: dict[str, Any]) -> Example:
    return convert.convert(rows(values), REGISTRY.formats[name])[0]


@pytest.mark.parametrize(
    ("values", "name"), [(MESSAGES, "messages"), (ALPACA, "alpaca"), (PAIR, "prompt-completion")], ids=str
)
def test_a_format_is_recognised_by_its_columns(values: dict[str, Any], name: str) -> None:
    assert recognise({**values, "source": "elsewhere"}) == name
    assert recognise({"source": "a row without them"}, values) == name


def test_a_format_that_is_named_is_not_recognised() -> None:
    assert recognise({"text": "x"}, name="alpaca") == "alpaca"
    with pytest.raises(ConfigError, match=r"unknown format 'alpacca'\n.*did you mean alpaca\?"):
        recognise(ALPACA, name="alpacca")


def test_rows_of_no_known_format_are_told_with_their_columns_and_the_columns_that_are_needed() -> None:
    with pytest.raises(DataError) as error:
        recognise({"text": "x"}, {"label": 1})
    told = str(error.value)
    assert "rows.jsonl:1: the rows are of no known format; their columns are text, label" in told
    assert "messages needs messages; alpaca needs instruction, output; prompt-completion needs" in told
    with pytest.raises(DataError, match="columns are none"):
        recognise({})


def test_every_bad_row_is_counted_and_the_first_are_shown() -> None:
    bad = [{"instruction": "ask"}] * (SHOWN_PROBLEMS + 3)
    with pytest.raises(DataError) as error:
        convert.convert(rows(ALPACA, *bad), REGISTRY.formats["alpaca"])
    assert len(error.value.problems) == len(bad)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{len(bad)} of {len(bad) + 1} rows are not of the format alpaca"
    assert lines[1] == "  rows.jsonl:2  column `output` is missing"
    assert lines[SHOWN_PROBLEMS + 1] == "  ... and 3 more"
    assert len(lines) == SHOWN_PROBLEMS + 3


@pytest.mark.parametrize(
    ("values", "question"),
    [
        ({"instruction": "ask", "output": "say"}, "ask"),
        ({"instruction": "ask", "input": None, "output": "say"}, "ask"),
        ({"instruction": "ask", "input": " \n", "output": "say"}, "ask"),
        ({"instruction": "ask", "input": "this", "output": "say"}, "ask\n\nthis"),
    ],
)
def test_alpaca_with_and_without_input(values: dict[str, Any], question: str) -> None:
    assert converted("alpaca", values).messages == ({"role": "user", "content": question}, ANSWER)


@pytest.mark.parametrize(("name", "values"), [("alpaca", ALPACA), ("prompt-completion", PAIR)])
def test_a_system_column_comes_first(name: str, values: dict[str, Any]) -> None:
    assert converted(name, {**values, "system": "be kind"}).messages[0] == {"role": "system", "content": "be kind"}
    assert converted(name, {**values, "system": ""}).messages == (USER, ANSWER)


def test_prompt_and_completion_as_texts_and_as_lists() -> None:
    assert converted("prompt-completion", PAIR).messages == (USER, ANSWER)
    listed = {"prompt": [{"role": "system", "content": "be kind"}, USER], "completion": [ANSWER], "tools": [{"n": 1}]}
    found = converted("prompt-completion", listed)
    assert found.messages == ({"role": "system", "content": "be kind"}, USER, ANSWER)
    assert found.tools == ({"n": 1},)


def test_messages_lose_what_arrow_filled_in_and_what_follows_the_last_answer() -> None:
    turns = [{**USER, "name": None}, CALL, {"role": "tool", "content": "42"}, ANSWER, {"role": "user", "content": "?"}]
    found = converted("messages", {"messages": turns, "tools": []})
    assert [turn["role"] for turn in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[0] == USER
    assert "content" not in found.messages[1]
    assert found.tools is None


BAD = {
    "no list": ("messages", {"messages": "text"}, "`messages` is no list of turns"),
    "no turns": ("messages", {"messages": []}, "`messages` is no list of turns"),
    "no object": ("messages", {"messages": [USER, "say"]}, "turn 2 of `messages` is no object"),
    "role": ("messages", {"messages": [USER, {"role": "gpt", "content": "x"}]}, "turn 2 .* has role 'gpt'; known: "),
    "no text": ("messages", {"messages": [USER, {"role": "assistant", "content": None}]}, "turn 2 .* no text"),
    "no answer": ("messages", {"messages": [USER]}, "no turn of the assistant"),
    "answer first": ("messages", {"messages": [ANSWER, USER, ANSWER]}, "begins with the assistant"),
    "missing": ("alpaca", {"instruction": "ask"}, "column `output` is missing"),
    "none": ("alpaca", {**ALPACA, "output": None}, "column `output` is missing"),
    "number": ("alpaca", {**ALPACA, "output": 7}, "`output` is no text but int"),
    "empty": ("prompt-completion", {**PAIR, "completion": " "}, "`completion` is empty"),
    "input": ("alpaca", {**ALPACA, "input": 7}, "`input` is no text"),
    "mixed": ("prompt-completion", {"prompt": [USER], "completion": "say"}, "`prompt` is no text but list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_does_not_fit_is_told_in_one_sentence(case: str) -> None:
    name, values, message = BAD[case]
    with pytest.raises(DataError, match=rf"1 of 1 rows.*\n  rows\.jsonl:1  .*{message}"):
        converted(name, values)


@pytest.mark.parametrize(("values", "name"), [(MESSAGES, "messages"), (PAIR, "prompt-completion")])
def test_good_and_bad_answers_together_are_not_learned_in_silence(values: dict[str, Any], name: str) -> None:
    with pytest.raises(DataError, match="`label` that is true or false") as error:
        recognise(values | {"label": True}, values | {"label": False})
    assert f"--data.format {name}" in error.value.hint
    assert recognise(values | {"label": False}, name=name) == name
    assert recognise(values | {"label": "sports"}) == name
