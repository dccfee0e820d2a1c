"""Thoughts beside an answer, in its text, under its keys and in another channel: each is learned once or reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_ft import Example
from mlflow_ft.builtin import formats
from mlflow_ft.builtin.formats import thoughts, tool_calls, turns
from mlflow_ft.builtin.formats.conversations import from_alpaca, from_pair, from_turns
from mlflow_ft.builtin.formats.preferences import from_preference, from_prompt, from_unpaired
from mlflow_ft.engine.tokens.placeholders import THOUGHT_KEYS

USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
PLACE = "a thought belongs into `reasoning_content` of its turn, or between <think> and </think> in its text"
PAIRS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "prompt-completion": (from_pair(*formats.PAIRS["prompt-completion"]), {"prompt": "ask", "completion": "say"}),
    "question-answer": (from_pair(*formats.PAIRS["question-answer"]), {"question": "ask", "answer": "say"}),
    "alpaca": (from_alpaca, {"instruction": "ask", "input": "", "output": "say"}),
    "turns": (from_pair(*formats.PAIRS["prompt-completion"]), {"prompt": [USER], "completion": [ANSWER]}),
    "messages": (from_turns, {"messages": [USER, ANSWER]}),
}


def test_the_keys_are_those_that_the_engine_marks() -> None:
    assert thoughts.KEYS == THOUGHT_KEYS


# --- a column


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("column", thoughts.KEYS)
def test_a_column_of_a_name_that_templates_know_is_the_thought_of_the_answer(case: str, column: str) -> None:
    """easy-dataset#381; columns of R1's distillations."""
    convert, values = PAIRS[case]
    assert convert({**values, column: "hm"}) == Example(messages=(USER, {**ANSWER, column: "hm"}))


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize(
    "column", ["think", "thought", "rationale", "cot", "Complex_CoT", "chain_of_thought", "Reasoning", "model thinking"]
)
def test_a_column_of_another_name_is_reported_with_a_remedy(case: str, column: str) -> None:
    convert, values = PAIRS[case]
    example = convert({**values, column: "hm"})
    rename = f"if it has the answer's thoughts, rename it (--data.columns reasoning_content={column})"
    assert example == Example(messages=(USER, ANSWER), notes=(f"`{column}` is not read; {rename}",))


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize(
    "more",
    [
        {"reasoning": "on"},
        {"reasoning_content": "", "thinking": None, "rationale": " "},
        {"thinking": True, "reasoning": 3, "think": "High"},
        {"reasoning_tokens": "many", "thinking_budget": "all", "cot_type": "math", "is_reasoning_complete": "never"},
    ],
)
def test_a_column_about_thoughts_has_none(case: str, more: Mapping[str, Any]) -> None:
    convert, values = PAIRS[case]
    assert convert({**values, **more}) == Example(messages=(USER, ANSWER))


@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\nsay", "hm</think>say"])
def test_an_answer_that_has_the_thought_of_the_column_keeps_it(answer: str) -> None:
    convert, _ = PAIRS["prompt-completion"]
    said = Example(messages=(USER, {**ANSWER, "content": answer}))
    assert convert({"prompt": "ask", "completion": answer, "reasoning": "hm\n"}) == said
    assert convert({"prompt": "ask", "completion": answer, "reasoning": "other"}).notes == (
        f"`reasoning` is not read; {PLACE}",
    )


def test_a_second_column_of_thoughts_is_reported() -> None:
    convert, values = PAIRS["prompt-completion"]
    example = convert({**values, "reasoning": "b", "reasoning_content": "a"})
    assert example.messages[-1] == {**ANSWER, "reasoning_content": "a"}
    assert example.notes == (f"`reasoning` is not read; {PLACE}",)
    assert not convert({**values, "reasoning": "a", "reasoning_content": "a"}).notes


def test_a_column_beside_several_answers_is_reported() -> None:
    example = from_turns({"messages": [USER, ANSWER, USER, ANSWER], "reasoning_content": "hm", "cot": [{"text": "hm"}]})
    assert example.messages == (USER, ANSWER, USER, ANSWER)
    assert example.notes == (f"`reasoning_content` is not read; {PLACE}", f"`cot` is not read; {PLACE}")


def test_the_answer_of_a_pair_with_a_history_is_the_last() -> None:
    example = from_alpaca({"instruction": "ask", "output": "say", "history": [["a", "b"]], "thinking": "hm"})
    assert example.messages[-1] == {**ANSWER, "thinking": "hm"}
    assert "thinking" not in example.messages[1]


@pytest.mark.parametrize("column", ["reasoning", "rationale", "chosen_reasoning"])
def test_a_column_beside_answers_that_are_judged_is_reported(column: str) -> None:
    """It may hold what the judge thought."""
    rows = (
        (from_preference, {"prompt": "ask", "chosen": "say", "rejected": "no"}),
        (from_unpaired, {"prompt": "ask", "completion": "say", "label": True}),
        (from_unpaired, {"messages": [USER, ANSWER], "label": False}),
    )
    for convert, values in rows:
        example = convert({**values, column: "hm"})
        assert example.notes == (f"`{column}` is not read; {PLACE}",)
        assert "hm" not in str((example.messages, example.chosen, example.rejected))


# --- variables of the template


@pytest.mark.parametrize("given", [{"enable_thinking": False}, '{"enable_thinking": false}'])
def test_variables_for_the_template_are_reported(given: Any) -> None:
    """trl#6315."""
    note = "`chat_template_kwargs` (enable_thinking) is not read: variables of a chat template are not set"
    preference = (from_preference, {"prompt": "ask", "chosen": "say", "rejected": "no"})
    for convert, values in (*PAIRS.values(), preference, (from_prompt, {"prompt": "ask"})):
        assert convert({**values, "chat_template_kwargs": given}).notes == (note,)
        for nothing in ({}, None, "", "{}"):
            assert not convert({**values, "chat_template_kwargs": nothing}).notes


# --- twice


def read(*given: Any) -> list[dict[str, Any]]:
    return turns.turns(list(given), "messages")[0]


@pytest.mark.parametrize("key", thoughts.KEYS)
@pytest.mark.parametrize("content", ["<think>hm</think>say", "<think>\nhm\n</think>\n\nsay", "hm</think>\nsay"])
def test_a_thought_that_is_there_twice_is_read_once(content: str, key: str) -> None:
    assert read({**ANSWER, "content": content, key: "hm\n"}) == [{**ANSWER, key: "hm\n"}]
    assert read({**ANSWER, "content": content, key: " "}) == [{**ANSWER, "content": content}]


def test_an_empty_thought_beside_a_thought_is_none() -> None:
    turn = {**ANSWER, "content": "<think>\n\n</think>\n\nsay", "reasoning_content": "", "reasoning": "hm"}
    assert read(turn) == [{**ANSWER, "reasoning_content": "", "reasoning": "hm"}]


def test_two_different_thoughts_are_refused() -> None:
    words = "^turn 2 of `messages` has one thought in `content` and another in `thinking`; keep the right one$"
    with pytest.raises(ValueError, match=words):
        read(USER, {**ANSWER, "content": "<think>a</think>say", "thinking": "b"})


def test_an_answer_about_the_tag_is_no_thought() -> None:
    turn = {**ANSWER, "content": "The tag </think> ends it.", "reasoning_content": "hm"}
    assert read(turn) == [turn]


# --- channels

ANALYSIS = {"role": "assistant", "channel": "analysis", "content": "hm"}
FINAL = {**ANSWER, "channel": "final"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def test_a_thought_in_its_own_channel_is_the_answers() -> None:
    """Megatron-Bridge#5389."""
    thinking = {**ANSWER, "thinking": "hm"}
    assert read(USER, ANALYSIS, FINAL) == [USER, thinking]
    assert read(USER, FINAL, USER, ANALYSIS, FINAL) == [USER, ANSWER, USER, thinking]
    assert from_turns({"messages": [USER, ANALYSIS, FINAL]}) == Example(messages=(USER, thinking))
    called = {"role": "assistant", "tool_calls": [CALL]}
    for channel in ({}, {"channel": "commentary"}):
        assert read(USER, ANALYSIS, {**called, **channel}) == [USER, {**called, "thinking": "hm"}]
    assert turns.turns([USER, {**ANALYSIS, "train": False}, {**FINAL, "train": False}], "x")[1] == [None, False]
    other = [{**USER, "channel": "chat"}, {**ANSWER, "channel": "e-mail"}]
    assert read(*other) == other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([ANALYSIS], "turn 2 of `x` has `channel`: analysis, but no turn with `channel`: final follows; put the text"),
        ([ANALYSIS, ANALYSIS, FINAL], "turn 2 of `x` has `channel`: analysis, but no turn"),
        ([ANALYSIS, USER, FINAL], "turn 2 of `x` has `channel`: analysis, but no turn"),
        ([ANALYSIS, ANSWER], "turn 2 of `x` has `channel`: analysis, but no turn"),
        ([ANALYSIS, {**FINAL, "thinking": "b"}], "turn 2 of `x` has `channel`: analysis, and the answer has thoughts"),
        ([{**ANALYSIS, "tool_calls": [CALL]}, FINAL], "turn 2 of `x` has `channel`: analysis, but is not text"),
        ([{**ANALYSIS, "train": False}, FINAL], "turn 2 of `x` and its answer disagree on whether they are learned"),
        ([{**FINAL, "channel": "commentary"}], "turn 2 of `x` has `channel`: commentary, but no `tool_calls`"),
    ],
)
def test_a_channel_that_is_not_read_is_refused_by_name(given: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the beginning is compared
        turns.turns([USER, *given], "x")
    assert str(error.value).startswith(message)


# --- a thought without an end


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        *(
            ("<think>hm yes", "<think>"),
            ("\n<think>\nhm", "<think>"),
            ("[THINK]hm", "[THINK]"),
            ("◁think▷a", "◁think▷"),
        ),
        *(("<thinking>a", "<thinking>"), ("<seed:think>a", "<seed:think>"), ("<think>", "<think>")),
        *(("<think>a</think>b", None), ("<THINK>a</think>b", None), ("a<think>b", None), ("<b>a", None), ("", None)),
    ],
)
def test_the_tag_that_no_other_closes(content: str, tag: str | None) -> None:
    assert thoughts.unclosed(content) == tag


def test_tools_of_the_system_turn_are_the_examples() -> None:
    system = {"role": "system", "content": "rule", "tools": [{"name": "f"}]}
    rule, tools = {"role": "system", "content": "rule"}, tool_calls.tools_of(system)
    assert from_turns({"messages": [system, USER, ANSWER]}) == Example(messages=(rule, USER, ANSWER), tools=tools)
    example = from_preference({"prompt": [system, USER], "chosen": "a", "rejected": "b"})
    assert (example.messages, example.tools) == ((rule, USER), tools)
    example = from_prompt({"prompt": [system, USER]})
    assert (example.messages, example.tools) == ((rule, USER), tools)
