"""Turns in whatever words a data set has for them become the turns that chat templates take."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Example, Message
from mlflow_ft.builtin.formats import conversations, tool_calls, turns, values
from mlflow_ft.rows import Opaque

USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
FUNCTION = {"name": "weather", "arguments": {"city": "Bonn"}}
CALL = {"type": "function", "function": FUNCTION}


def read(*given: Any) -> list[dict[str, Any]]:
    return turns.turns(list(given), "messages")[0]


def wishes(*given: Any) -> list[bool | None]:
    return turns.turns(list(given), "messages")[1]


# --- who speaks, and what

NAMES = {
    "system": "system developer System SYSTEM",
    "user": "user human User Human HUMAN prompter customer",
    "assistant": "assistant gpt GPT model bot chatbot ai AI agent chatgpt Assistant bing bard claude",
    "tool": "tool observation function function_response tool_response tool_result ipython environment",
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names.split()])
@pytest.mark.parametrize(("role_key", "key"), [("role", "content"), ("from", "value"), ("speaker", "text")])
def test_every_name_of_a_role_is_understood(role: str, name: str, role_key: str, key: str) -> None:
    assert read({role_key: name, key: "words"}) == [{"role": role, "content": "words"}]
    assert read({role_key: f" {name}\n", key: "words"}) == [{"role": role, "content": "words"}]


def test_no_name_stands_for_two_roles() -> None:
    names = [name for names in turns.ROLES.values() for name in names]
    assert len(names) == len(set(names))
    assert all(name == name.strip().lower() for name in names)


SPOKEN = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=8)), min_size=1)
WAYS = [("role", "content"), ("from", "value"), ("speaker", "text"), ("role", "text"), ("from", "content")]


@given(spoken=SPOKEN, data=st.data())
def test_a_conversation_is_the_same_in_any_words(spoken: list[tuple[str, str]], data: st.DataObject) -> None:
    """Roles, keys, their order, empty keys, a part of a list, JSON as text, another column: all the same Example."""
    spoken = [*spoken, ("assistant", "the end")]
    plain = [{"role": role, "content": words} for role, words in spoken]
    written = []
    for role, words in spoken:
        role_key, key = data.draw(st.sampled_from(WAYS))
        name = data.draw(st.sampled_from(turns.ROLES[role]))
        name = data.draw(st.sampled_from([name, name.upper(), name.title(), f" {name} "]))
        content = data.draw(st.sampled_from([words, [words], [{"type": "text", "text": words}], [{"text": words}]]))
        turn = {role_key: name, key: content, "weight": None, "tool_calls": data.draw(st.sampled_from([None, []]))}
        written.append(dict(data.draw(st.permutations(list(turn.items())))))
    column = data.draw(st.sampled_from(conversations.TURN_COLUMNS))
    value = data.draw(st.sampled_from([written, json.dumps(written), f" {json.dumps(written, indent=1)}\n"]))
    assert conversations.from_turns({column: value}) == conversations.from_turns({"messages": plain})


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=4), st.sampled_from(turns.ROUNDS)
)
def test_rounds_are_turns_two_by_two(rounds: list[tuple[str, str]], keys: tuple[str, str]) -> None:
    expected = [
        {"role": role, "content": words}
        for pair in rounds
        for role, words in zip(("user", "assistant"), pair, strict=True)
    ]
    assert read(*(dict(zip(keys, pair, strict=True)) for pair in rounds)) == expected


def test_a_turn_with_keys_of_a_round_is_a_turn() -> None:
    both = {**ANSWER, "input": "a", "output": "b"}
    assert read(USER, both) == [USER, both]
    assert read(both) == [both]
    assert turns.roles_of([both]) == ["assistant"]


def test_the_last_round_may_lack_its_answer() -> None:
    assert read({"input": "ask", "output": "say"}, {"input": "ask", "output": None}) == [USER, ANSWER, USER]


def test_lists_of_roles_and_contents_are_turns() -> None:
    """`datasets` reads a sequence of objects as an object of sequences."""
    listed = {"role": ["user", "assistant"], "content": ["ask", "say"], "weight": [None, 0], "id": 7, "tags": ["x"]}
    assert turns.turns(listed, "messages") == ([USER, ANSWER], [None, False])
    assert turns.roles_of(listed) == ["user", "assistant"]
    assert turns.roles_of({"role": ["user"], "content": ["a", "b"]}) == []


def test_what_else_a_turn_says_is_kept_unless_it_is_null() -> None:
    [turn] = read({**ANSWER, "reasoning_content": "hm", "name": None, "tool_calls": None, "train": True})
    assert turn == {**ANSWER, "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], ""),
        (["a", "b"], "a\nb"),
        ([{"type": "text", "value": "a"}, {"type": "text", "content": "b"}], "a\nb"),
        ([{"type": "text", "text": {"value": "a", "annotations": []}}], "a"),
        ([{"type": "text", "text": "a", "image_url": None}, {"type": "input_text", "text": "b"}], "a\nb"),
        ([{"type": "output_text", "text": "a"}], "a"),
        ([{"type": None, "text": "a"}], "a"),
        ("", ""),
        (" [1, 2] ", " [1, 2] "),
    ],
)
def test_content_may_be_a_list_of_parts(content: Any, text: str) -> None:
    assert read({"role": "assistant", "content": content}) == [{"role": "assistant", "content": text}]


# --- what is learned


@pytest.mark.parametrize("key", turns.LEARN_KEYS)
@pytest.mark.parametrize("wish", [True, False])
def test_a_turn_may_say_whether_it_is_learned(key: str, wish: bool) -> None:  # noqa: FBT001  # pytest names it
    for value in (True, 1, 1.0, "true", "True", "1", " TRUE ") if wish else (False, 0, 0.0, "false", "False", "0"):
        assert wishes({**ANSWER, key: value}) == [wish]
        assert key not in read({**ANSWER, key: value})[0]
    assert wishes({**ANSWER, key: None}) == [None]


@pytest.mark.parametrize("value", [0.5, 2, -1, "yes", "", [0], {"a": 1}, float("nan")])
def test_a_weight_that_is_neither_is_reported(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^turn 2 of `messages` has .* in `weight`; .* write true or false, 1 or 0$"):
        read(USER, {**ANSWER, "weight": value})


def test_a_mask_of_tokens_is_reported() -> None:
    assert wishes({**ANSWER, "loss_mask": 0}) == [False]
    with pytest.raises(ValueError, match=r"has \[0, 1, 1\] in `loss_mask`; a turn is learned or not"):
        read({**ANSWER, "loss_mask": [0, 1, 1]})


def test_an_object_in_place_of_text_is_reported_under_its_own_key() -> None:
    with pytest.raises(ValueError, match="has an object in `value`, not text"):
        read({"from": "gpt", "value": {"a": 1}})


def test_only_the_assistant_can_be_learned() -> None:
    assert wishes({**USER, "train": False}, {**USER, "weight": 1}) == [False, True]
    with pytest.raises(ValueError, match="turn 1 of `messages` has `train`: true, but is a turn by the user"):
        read({**USER, "train": True})


@pytest.mark.parametrize("key", turns.LEARN_KEYS)
def test_a_fraction_of_a_weight_is_refused_under_every_name(key: str) -> None:
    with pytest.raises(ValueError, match=rf"has 0\.5 in `{key}`; a turn is learned or not"):
        read({**ANSWER, key: 0.5})


@pytest.mark.parametrize("key", ["mask", "masked"])
@pytest.mark.parametrize("value", [True, False, 0])
def test_a_mask_that_may_mean_both_is_refused(key: str, *, value: bool) -> None:
    """SWE-agent's trajectories have `mask`, torchtune's messages `masked`: there, true means not learned."""
    with pytest.raises(ValueError, match=rf"^turn 2 of `messages` has `{key}`, .* --data\.columns train={key} if true"):
        read(USER, {**ANSWER, key: value})
    assert wishes({**USER, key: value}, {**ANSWER, key: None}) == [None, None]


def test_names_of_a_weight_that_say_different_things_are_refused() -> None:
    assert wishes({**ANSWER, "train": True, "weight": 1, "loss": None}) == [True]
    with pytest.raises(ValueError, match="contradicts itself on whether it is learned: `train` and `weight`"):
        read({**ANSWER, "train": True, "weight": 0})


@pytest.mark.parametrize("key", ["train_detail", "training_detail", "train-detail"])
def test_parts_of_a_turn_cannot_be_learned_alone(key: str) -> None:
    assert read({**ANSWER, key: []})
    with pytest.raises(ValueError, match="says which parts of it are learned, but a turn is learned as a whole or not"):
        read({**ANSWER, key: [{"begin_offset": 0, "end_offset": 1, "train": True}]})


@pytest.mark.parametrize("key", turns.MEDIA_KEYS)
def test_a_picture_that_a_turn_has_is_refused(key: str) -> None:
    for value in (["a.png"], {"bytes": b"x"}, "a.png", Opaque("an image")):
        with pytest.raises(ValueError, match=f"has images or audio in `{key}`; only text can be learned"):
            read({**USER, key: value})
    for value in (None, [], "", 0, False):
        assert read({**USER, key: value})[0]["content"] == "ask"


# --- tools


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [FUNCTION],
        FUNCTION,
        [{"type": "function", "function": {**FUNCTION, "arguments": json.dumps(FUNCTION["arguments"])}}],
        [{"name": "weather", "parameters": {"city": "Bonn"}}],
        [{"function": None, **FUNCTION, "id": None}],
        json.dumps([CALL]),
        json.dumps(FUNCTION),
    ],
)
def test_calls_are_read_in_every_form(calls: Any) -> None:
    assert read({"role": "assistant", "content": None, "tool_calls": calls}) == [
        {"role": "assistant", "tool_calls": [CALL]}
    ]
    assert read({"role": "assistant", "content": "x", "function_call": calls}) == [
        {"role": "assistant", "content": "x", "tool_calls": [CALL]}
    ]


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        *((None, {}), ("", {}), ({}, {}), ("{}", {}), ("null", {}), ('{"x": null}', {"x": None})),
        ({"x": None, "y": [None, {"z": None}]}, {"x": None, "y": [None, {"z": None}]}),
        (json.dumps('{"x": 1}'), {"x": 1}),
        ("{'x': None, 'y': \"it's\"}", {"x": None, "y": "it's"}),
    ],
)
def test_arguments_are_an_object(given: Any, arguments: Any) -> None:
    """trl and others: JSON in text, encoded twice, or written by Python."""
    [turn] = read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": given}]})
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "args": {"x": 1}, "id": "c", "type": "tool_call"},
        {"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}},
        {"name": "f", "kwargs": '{"x": 1}', "id": "c"},
        {"id": "c", "function": {"name": "f", "arguments": None, "parameters": {"x": 1}}},
        {"id": "c", "type": "function", "function": {"name": "f"}, "arguments": '{"x": 1}'},
    ],
)
def test_arguments_are_found_where_other_tools_write_them(call: dict[str, Any]) -> None:
    """LangChain, Anthropic; a table of calls of several tools."""
    function = {"name": "f", "arguments": {"x": 1}}
    [turn] = read({"role": "assistant", "tool_calls": [call]})
    assert turn["tool_calls"] == [{"type": "function", "id": "c", "function": function}]


def test_a_call_whose_arguments_have_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has a tool call without `arguments`, but with `prams`;"):
        read({"from": "function_call", "value": '{"name": "f", "prams": {"x": 1}}'})
    described = {"type": "function", "index": 0, "function": {"name": "f", "description": "d", "extra": None}}
    [turn] = read({"role": "assistant", "tool_calls": [described]})
    assert turn["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize("role", ["function_call", "function-call", "tool_call", "Function_Call"])
@pytest.mark.parametrize("content", [FUNCTION, [FUNCTION], json.dumps(FUNCTION), json.dumps([FUNCTION])])
def test_a_turn_that_is_a_call_is_the_assistants(role: str, content: Any) -> None:
    called = {**CALL, "id": "call00000"}
    assert read({"from": role, "value": content}) == [{"role": "assistant", "tool_calls": [called]}]


@pytest.mark.parametrize("arguments", ['{"city": "Os', "not JSON", ["Bonn"], '["Bonn"]', 7, "7", True, "{'x': {1}"])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    """mistral-vibe#615, oumi#2599: a call that was cut."""
    with pytest.raises(
        ValueError, match=r"^turn 1 of `messages` has a tool call whose arguments are .*, not an object"
    ):
        read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]})


SECOND = {"name": "time", "arguments": {}}
NUMBERED = [{**CALL, "id": "call00000"}, {"type": "function", "function": SECOND, "id": "call00001"}]


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (repr(FUNCTION), 1),
        (repr([FUNCTION, SECOND]), 2),
        ("""{"name": "weather", "arguments": '{"city": "Bonn"}'}""", 1),
        (json.dumps({**FUNCTION, "arguments": json.dumps(FUNCTION["arguments"])}), 1),
        (f"{json.dumps(FUNCTION)}\n{json.dumps(SECOND)}\n", 2),
        (f"<tool_call>\n{json.dumps(FUNCTION)}\n</tool_call>\n<tool_call>\n{json.dumps(SECOND)}\n</tool_call>", 2),
    ],
)
def test_a_call_is_read_however_it_is_written(written: str, count: int) -> None:
    assert read({"from": "function_call", "value": written}) == [{"role": "assistant", "tool_calls": NUMBERED[:count]}]


@pytest.mark.parametrize(
    "thought",
    ["<think>hm</think>", "<think>\n{'a'}\n</think>", "hm</think>", "[THINK]hm[/THINK]", "<thought>a</thought>"],
)
@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_a_thought_before_a_call_is_read_with_it(thought: str, between: str) -> None:
    """LLaMA-Factory#6797, LLaMA-Factory#7119."""
    given = {"from": "function_call", "value": thought + between + json.dumps(FUNCTION)}
    assert read(given) == [{"role": "assistant", "content": thought, "tool_calls": NUMBERED[:1]}]


def test_a_tag_in_an_argument_is_no_thought() -> None:
    function = {"name": "f", "arguments": {"x": "</think> <tool_call>"}}
    [turn] = read({"from": "function_call", "value": json.dumps(function)})
    assert turn["tool_calls"][0]["function"] == function
    assert "content" not in turn


ASKED_BOTH = [{"role": "tool_call", "content": json.dumps(call)} for call in (FUNCTION, SECOND)]


@pytest.mark.parametrize("said", [[], [{"role": "assistant", "content": "<think>hm</think>"}]])
def test_turns_that_are_calls_of_one_answer_are_one_turn(said: list[Any]) -> None:
    """ms-swift writes every call as a separate turn; Automodel#2325."""
    results = [{"role": "tool_response", "content": words} for words in ("sun", "noon")]
    *_, answer, first, second = read({"role": "user", "content": "ask"}, *said, *ASKED_BOTH, *results)
    content = {"content": "<think>hm</think>"} if said else {}
    assert answer == {"role": "assistant", **content, "tool_calls": NUMBERED}
    assert [(turn["name"], turn["tool_call_id"]) for turn in (first, second)] == [
        ("weather", "call00000"),
        ("time", "call00001"),
    ]


def test_a_call_after_a_result_or_with_words_of_its_own_is_another_turn() -> None:
    first, second = ASKED_BOTH
    roles = [turn["role"] for turn in read(first, {"role": "tool", "content": "sun"}, second)]
    assert roles == ["assistant", "tool", "assistant"]
    thought = {"role": "tool_call", "content": "<think>hm</think>" + second["content"]}
    assert [turn.get("content") for turn in read(first, thought)] == [None, "<think>hm</think>"]
    own = [{"role": "tool_call", "tool_calls": [{**FUNCTION, "id": name}]} for name in "ab"]
    [turn] = read(*own)
    assert [call["id"] for call in turn["tool_calls"]] == ["a", "b"]


def test_calls_of_one_answer_are_learned_together() -> None:
    first, second = ASKED_BOTH
    _, wishes = turns.turns([{**first, "loss": False}, {**second, "loss": False}], "messages")
    assert wishes == [False]
    with pytest.raises(ValueError, match=r"^turn 2 of `messages` is a call of the turn before it, and they disagree"):
        read(first, {**second, "loss": False})


@pytest.mark.parametrize(
    "words",
    [
        *('[{"x": 1}]', "[]", "f(x=1)", "", "words", 'Action: f\nAction Input: {"x": 1}', "[1, 2]", "null"),
        *('{"name": "f", "argum', '{"function": "f", "parameters": {}}', '{"name": "f"} and more', "<think>a</think>"),
        *('<think>a</think>{"name": "f', {"function": "f"}, [FUNCTION, "f"]),
    ],
)
def test_a_turn_that_should_be_a_call_and_is_none_is_refused(words: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^turn 2 of `messages` should be a call, but .* is none; write a call as JSON"
    ):
        read(USER, {"from": "function_call", "value": words})


def test_a_turn_that_has_its_calls_may_say_anything() -> None:
    called = {"role": "assistant", "tool_calls": [CALL]}
    assert read({"role": "tool_call", "content": "words", "tool_calls": [CALL]}) == [{**called, "content": "words"}]
    assert read({"role": "tool_call", "content": json.dumps(FUNCTION), "tool_calls": [CALL]}) == [called]


def test_results_name_the_calls_that_they_answer() -> None:
    calls = {"from": "function_call", "value": json.dumps([FUNCTION, {"name": "time"}])}
    result = {"from": "observation", "value": "x"}
    messages = read(calls, result, result, result, {"from": "gpt", "value": "say"}, result)
    assert [turn.get("tool_call_id") for turn in messages] == [None, "call00000", "call00001", None, None, None]
    assert [turn.get("name") for turn in messages] == [None, "weather", "time", None, None, None]
    said = {"role": "tool", "content": "x", "tool_call_id": "mine", "name": "own"}
    assert read(calls, said)[1] == said
    assert read({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"})[1]["name"] == "weather"


@pytest.mark.parametrize(
    "given",
    [
        [{"type": "function", "function": {"name": "f"}}],
        [{"name": "f"}],
        {"name": "f"},
        ['{"name": "f"}'],
        '[{"name": "f"}]',
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_are_read_in_every_form(given: Any, column: str) -> None:
    assert tool_calls.tools_of({column: given}) == ({"type": "function", "function": {"name": "f"}},)


def test_a_null_in_a_tool_is_kept() -> None:
    function = {"name": "f", "description": None, "parameters": {"properties": {"x": {"default": None}}}}
    assert tool_calls.tools_of({"tools": [function]}) == ({"type": "function", "function": function},)


@pytest.mark.parametrize("key", ["input_schema", "inputSchema"])
def test_the_parameters_of_a_tool_may_have_another_name(key: str) -> None:
    """ms-swift#9809: Anthropic's and MCP's."""
    schema = {"type": "object", "properties": {"x": {}}}
    expected = ({"type": "function", "function": {"name": "f", "parameters": schema}},)
    assert tool_calls.tools_of({"tools": [{"name": "f", key: schema}]}) == expected
    assert tool_calls.tools_of({"tools": [{"name": "f", "parameters": None, key: schema}]}) == expected
    both = {"name": "f", "parameters": {}, key: schema}
    assert tool_calls.tools_of({"tools": [both]}) == ({"type": "function", "function": both},)


def test_a_system_turn_may_offer_the_tools() -> None:
    """GLM-4#199."""
    rule, tools = {"role": "system", "content": "rule"}, [{"name": "f"}]
    offered = ({"type": "function", "function": {"name": "f"}},)
    given = [{**rule, "tools": tools}, USER]
    assert tool_calls.offered({}, given) == ([rule, USER], offered)
    assert tool_calls.offered({"tools": json.dumps(tools)}, given) == ([rule, USER], offered)
    assert tool_calls.offered({"tools": tools}, [rule, USER]) == ([rule, USER], offered)
    assert tool_calls.offered({}, [{**rule, "tools": []}, USER]) == ([rule, USER], None)
    with pytest.raises(ValueError, match=r"^turn 1 offers other tools than the row; keep one list of tools$"):
        tool_calls.offered({"tools": [{"name": "g"}]}, given)


@pytest.mark.parametrize("given", [None, "", " ", [], {}, "[]", "{}"])
def test_an_empty_list_of_tools_counts_as_none(given: Any) -> None:
    assert tool_calls.tools_of({"tools": given}) is None
    assert tool_calls.tools_of({"tools": given, "functions": [{"name": "f"}]}) is not None


# --- what is wrong

ROLES = "the roles are system, user, assistant and tool: the model learns the assistant's words"
BAD: Mapping[str, tuple[Any, str]] = {
    "text": ("words", "`messages` is text, not a list of turns"),
    "a number": (7, "`messages` is a number, not a list of turns"),
    "null": (None, "`messages` is null, not a list of turns"),
    "a truth": (True, "`messages` is true, not a list of turns"),
    "one turn": (USER, "`messages` is an object, not a list of turns"),
    "broken JSON": ('[{"role": ', "`messages` is text, not a list of turns"),
    "no turns": ([], "`messages` has no turns"),
    "a text for a turn": ([USER, "say"], "turn 2 of `messages` is text, not an object with `role` and `content`"),
    "null for a turn": ([USER, None], "turn 2 of `messages` is null, not an object with `role` and `content`"),
    "a list for a turn": ([[USER]], "turn 1 of `messages` is a list, not an object with `role` and `content`"),
    "no role": ([{"content": "x", "id": 1}], "turn 1 of `messages` has no `role`; its keys are content, id"),
    "many keys": (
        [{f"k{number}": 1 for number in range(13)}],
        "turn 1 of `messages` has no `role`; its keys are k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11 ...",
    ),
    "nothing": ([{}], "turn 1 of `messages` has no `role`; its keys are none"),
    "a misspelt key of a role": (
        [{"rolle": "user", "content": "x"}],
        "turn 1 of `messages` has no `role`; did you mean `role` where it says `rolle`?",
    ),
    "a misspelt key in capitals": (
        [{"Role": "user", "Content": "x"}],
        "turn 1 of `messages` has no `role`; did you mean `role` where it says `Role`?",
    ),
    "a misspelt key of ShareGPT": (
        [{"form": "human", "value": "x"}],
        "turn 1 of `messages` has no `role`; did you mean `from` where it says `form`?",
    ),
    "a misspelt role": (
        [USER, {"role": "asistant", "content": "x"}],
        "turn 2 of `messages` has the unknown role 'asistant'; did you mean `assistant`?",
    ),
    "a strange role": (
        [{"role": "zoo", "content": "x"}],
        f"turn 1 of `messages` has the unknown role 'zoo'; {ROLES}",
    ),
    "a number for a role": (
        [{"role": 1, "content": "x"}],
        f"turn 1 of `messages` has the unknown role 1; {ROLES}",
    ),
    "no text": ([USER, {"role": "assistant"}], "turn 2 of `messages` has no text in `content`"),
    "null for a text": ([{"role": "assistant", "content": None}], "turn 1 of `messages` has no text in `content`"),
    "a misspelt key of a text": (
        [{"role": "user", "contents": "x"}],
        "turn 1 of `messages` has no text in `content`; did you mean `content` where it says `contents`?",
    ),
    "a number for a text": (
        [{"role": "user", "content": 4}],
        "turn 1 of `messages` has a number in `content`, not text",
    ),
    "an object for a text": (
        [{"role": "user", "content": {"a": 1}}],
        "turn 1 of `messages` has an object in `content`, not text",
    ),
    "a picture": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "turn 1 of `messages` has a part of type 'image_url' in `content`; only text can be learned",
    ),
    "a part without text": (
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        "turn 1 of `messages` has a part without text in `content`",
    ),
    "calls that are a number": (
        [{"role": "assistant", "tool_calls": 4}],
        "turn 1 of `messages` has tool calls that are a number, not a list",
    ),
    "a call of nothing": (
        [{"role": "assistant", "tool_calls": [{"arguments": {}}]}],
        "turn 1 of `messages` has a tool call without the name of a function",
    ),
    "a broken round": (
        [{"input": "ask", "output": "say"}, {"prompt": "ask"}],
        "turn 3 of `messages` has no `role`; its keys are prompt",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_turn_is_reported_in_one_sentence(case: str) -> None:
    given, message = BAD[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        turns.turns(given, "messages")
    assert str(error.value) == message


TOOLS: Mapping[str, tuple[Any, str]] = {
    "a text": ("none", "`tools` is text, not a list of functions"),
    "a number": (4, "`tools` is a number, not a list of functions"),
    "no name": ([{"name": "f"}, {"description": "x"}], "function 2 of `tools` has no name"),
    "no object": ([4], "function 1 of `tools` has no name"),
}


@pytest.mark.parametrize("case", TOOLS)
def test_what_is_wrong_with_the_tools_is_reported_in_one_sentence(case: str) -> None:
    given, message = TOOLS[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        tool_calls.tools_of({"tools": given})
    assert str(error.value) == message


def test_a_message_stays_short_however_long_the_data_is() -> None:
    huge = "x" * 100_000
    for turn in (
        {huge: 1},
        {"role": huge},
        {f"{huge}{number}": 1 for number in range(1000)},
        {**ANSWER, "weight": huge},
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011  # whatever it says
            read(turn)
        assert len(str(error.value)) < 700


def test_nesting_has_a_bottom_in_tools_and_calls() -> None:
    deep: Any = {}
    for _ in range(values.DEEPEST + 1):
        deep = {"x": deep}
    with pytest.raises(ValueError, match=r"^turn 1 of `messages` has a tool call with arguments that are nested more"):
        read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep}]})
    with pytest.raises(ValueError, match=r"^function 1 of `tools` is nested more than 100 levels deep"):
        tool_calls.tools_of({"tools": [{"name": "f", "parameters": deep}]})
    assert read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep["x"]["x"]}]})
    lists: Any = []
    for _ in range(values.DEEPEST):
        lists = [lists]
    values.check_json(lists, "x")
    with pytest.raises(ValueError, match=r"^x nested more than 100 levels deep$"):
        values.check_json([lists], "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"when": datetime(2024, 5, 1, tzinfo=UTC)}, "x not JSON: `when` is a timestamp; cast the column to text, or"),
        ({"a": [{"day": date(2024, 5, 1)}]}, "x not JSON: `a[].day` is a date; cast the column"),
        ({"price": Decimal("3.50")}, "x not JSON: `price` is a decimal number; cast the column"),
        ({"a": {"photo": Opaque("an image")}}, "x not JSON: `a.photo` is an image; cast the column"),
        ({"a": b"x"}, "x not JSON: `a` is binary data; cast the column"),
        ({"a": float("nan")}, "x not JSON: `a` is nan, which JSON cannot represent"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        values.check_json(value, "x")


# --- text that looks like turns


@pytest.mark.parametrize(
    "text",
    [
        *("[1, 2]", '{"a": 1}', "[INST] x", "{", "[]", "{}", '["a"]', '[{"name": "x"}]', "7", ""),
        *('[{"role": "admin", "content": "x"}]', '[{"role": "user"}]', '[{"input": "a", "output": "b"}]'),
    ],
)
def test_json_that_means_something_else_is_text(text: str) -> None:
    assert turns.as_turns(text) is None


@pytest.mark.parametrize(
    "given", [[USER], USER, json.dumps([USER]), json.dumps(USER), {"role": ["user"], "content": ["ask"]}]
)
def test_turns_are_seen_in_every_form(given: Any) -> None:
    listed = turns.as_turns(given)
    assert listed is not None
    assert read(*listed) == [USER]


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ([USER, ANSWER], ["user", "assistant"]),
        (json.dumps([USER, ANSWER]), ["user", "assistant"]),
        ([{"from": "function_call", "value": "x"}], ["assistant"]),
        ([{"role": "who"}, USER], ["", "user"]),
        ([{"input": "a", "output": "b"}], ["user", "assistant"]),
        ([USER, "words", {"x": 1}], ["user", "", ""]),
        *((given, []) for given in (None, 7, "words", [], ["a"], [{"x": 1}], {}, USER, '["a"]', [None])),
    ],
)
def test_who_speaks_is_reported_turn_by_turn(given: Any, roles: Sequence[str]) -> None:
    assert turns.roles_of(given) == roles
    assert turns.is_turns(given) is bool(roles)


def test_reading_changes_nothing_in_the_row() -> None:
    given = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}]
    before = json.dumps(given)
    messages: Sequence[Message] = read(*given)
    assert json.dumps(given) == before
    assert Example(messages=tuple(messages)).messages[2]["name"] == "weather"
