"""Rows that say which answer is better, whether one is good, or only what was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Example
from mlflow_ft.builtin import formats
from mlflow_ft.builtin.formats import conversations, preferences
from mlflow_ft.builtin.formats.preferences import GUESSED, from_preference, from_prompt, from_unpaired

SYSTEM = {"role": "system", "content": "rule"}
USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
HM = {"role": "assistant", "content": "hm"}
MORE = {"role": "user", "content": "more"}
CHOICE = Example(messages=(USER,), chosen=(GOOD,), rejected=(BAD,))
TOOLS = [{"name": "f"}]


def turn(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": words}


# --- two answers, in every layout


@pytest.mark.parametrize("column", preferences.PROMPT_COLUMNS)
@pytest.mark.parametrize("prompt", ["ask", [USER], USER, json.dumps([USER])])
@pytest.mark.parametrize("layout", ["text", "turns", "turn", "JSON", "whole"])
def test_a_prompt_and_two_answers_in_every_layout(column: str, prompt: Any, layout: str) -> None:
    answers = {
        "text": ("good", "bad"),
        "turns": ([GOOD], [BAD]),
        "turn": (GOOD, {"from": "gpt", "value": "bad"}),
        "JSON": (json.dumps([GOOD]), json.dumps(BAD)),
        "whole": ([USER, GOOD], [USER, BAD]),
    }
    chosen, rejected = answers[layout]
    assert from_preference({column: prompt, "chosen": chosen, "rejected": rejected}) == CHOICE


SECOND_SYSTEM = "`system` left out: the turns already begin with a system prompt"
NOT_ASKED = "the prompt beside `chosen` and `rejected` left out: both are whole conversations without it"


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        ({"prompt": "ask", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, ()),
        ({"prompt": "sk ", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ()),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, (NOT_ASKED,)),
        ({"system": "rule", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, ()),
        ({"system": "other", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, (SECOND_SYSTEM,)),
        ({"system": "other", "prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"}, (SECOND_SYSTEM,)),
    ],
)
def test_a_prompt_that_is_not_asked_is_noted(row: dict[str, Any], notes: tuple[str, ...]) -> None:
    assert from_preference(row).notes == notes


def test_a_second_system_prompt_of_a_prompt_is_noted() -> None:
    assert from_prompt({"system": "other", "prompt": [SYSTEM, USER]}).notes == (SECOND_SYSTEM,)
    assert from_prompt({"system": "rule", "prompt": [SYSTEM, USER]}).notes == ()


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
EARLIER = st.lists(st.tuples(WORDS, WORDS), max_size=2)


@given(earlier=EARLIER, asked=WORDS, good=WORDS, bad=WORDS, system=st.booleans(), data=st.data())
def test_the_same_preference_is_the_same_in_four_layouts(
    *, earlier: list[tuple[str, str]], asked: str, good: str, bad: str, system: bool, data: st.DataObject
) -> None:
    prompt = [turn("system", "rule")] if system else []
    for first, other in earlier:
        prompt += [turn("user", first), turn("assistant", other)]
    prompt += [turn("user", asked)]
    chosen, rejected = turn("assistant", good), turn("assistant", bad)
    expected = Example(messages=tuple(prompt), chosen=(chosen,), rejected=(rejected,))
    written = {"chosen": good, "rejected": bad}
    layouts: list[Mapping[str, Any]] = [
        {"prompt": prompt, **written},
        {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]},
        {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
        {"prompt": asked, "chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
        {"conversations": prompt, "chosen": chosen, "rejected": rejected},
        {"messages": [*prompt, chosen], "chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
        {"conversation": prompt, **written},
    ]
    if not earlier:
        layouts.append({"prompt": asked, "system": "rule" if system else None, **written})
        layouts.append({"question": asked, "system": "rule" if system else "", **written})
    layout = data.draw(st.sampled_from(layouts))
    if data.draw(st.booleans()):
        layout = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in layout.items()}
    assert from_preference(layout) == expected


def test_answers_of_several_turns_go_ways_of_their_own() -> None:
    example = from_preference({"chosen": [USER, GOOD, MORE, ANSWER], "rejected": [USER, BAD, MORE, HM]})
    assert example == Example(messages=(USER,), chosen=(GOOD, MORE, ANSWER), rejected=(BAD, MORE, HM))
    example = from_preference({"chosen": [USER, HM, MORE, GOOD], "rejected": [USER, HM, turn("user", "else"), BAD]})
    assert example == Example(messages=(USER,), chosen=(HM, MORE, GOOD), rejected=(HM, turn("user", "else"), BAD))
    example = from_preference({"prompt": [USER], "chosen": [USER, HM, MORE, GOOD], "rejected": [USER, HM, MORE, BAD]})
    assert example == Example(messages=(USER,), chosen=(HM, MORE, GOOD), rejected=(HM, MORE, BAD))
    asks = turn("user", "hm")
    example = from_preference({"chosen": [USER, HM, MORE, GOOD], "rejected": [USER, asks, MORE, BAD]})
    assert example == Example(messages=(USER,), chosen=(HM, MORE, GOOD), rejected=(asks, MORE, BAD))
    assert from_preference({"prompt": "ask", "chosen": [GOOD], "rejected": [USER, BAD]}) == CHOICE
    spaced = turn("user", " ask\n")
    assert from_preference({"prompt": [USER], "chosen": [spaced, GOOD], "rejected": [spaced, BAD]}) == CHOICE
    example = from_preference({"chosen": [USER, GOOD], "rejected": [USER, HM, MORE, BAD]})
    assert example == Example(messages=(USER,), chosen=(GOOD,), rejected=(HM, MORE, BAD))


def test_two_answers_that_are_the_same_still_have_a_prompt() -> None:
    assert from_preference({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}).chosen == (GOOD,)
    assert from_preference({"prompt": "ask", "chosen": "good", "rejected": "good"}).rejected == (GOOD,)


def test_calls_tell_answers_apart() -> None:
    spoken_call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    other = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 2}}]}
    end = [{"role": "tool", "content": "ok"}, ANSWER]
    example = from_preference({"chosen": [USER, spoken_call, *end], "rejected": [USER, other, *end], "tools": TOOLS})
    assert (len(example.messages), len(example.chosen), len(example.rejected)) == (1, 3, 3)
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)
    results = from_preference({"chosen": [USER, spoken_call, *end], "rejected": [USER, spoken_call, end[0], BAD]})
    assert [message["role"] for message in results.messages] == ["user", "assistant", "tool"]
    assert results.rejected == (BAD,)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", '[{"name": "x"}]'])
def test_json_may_be_an_answer(text: str) -> None:
    example = from_preference({"prompt": "ask", "chosen": text, "rejected": "bad"})
    assert example.chosen == (turn("assistant", text),)


def test_a_prompt_is_what_both_texts_begin_with_where_no_column_holds_it() -> None:
    example = from_preference({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert example == Example(
        messages=(turn("user", "The sky is"),),
        chosen=(turn("assistant", "blue."),),
        rejected=(turn("assistant", "green."),),
        notes=(GUESSED,),
    )
    example = from_preference({"chosen": "Say blue", "rejected": "Say blush"})
    assert example.chosen == (turn("assistant", "blue"),), "never within a word"


def test_the_prompt_may_be_a_transcript() -> None:
    written = "\n\nHuman: ask\n\nAssistant: "
    example = from_preference({"chosen": f"{written}good", "rejected": f"{written}bad"})
    assert example == CHOICE
    assert from_preference({"prompt": written, "chosen": "good", "rejected": "bad"}) == CHOICE


def test_other_columns_come_before_the_prompt() -> None:
    values = {"instruction": "ask", "input": "this", "chosen": "good", "rejected": "bad"}
    asked = turn("user", "ask\n\nthis")
    assert from_preference(values).messages == (asked,)
    more = {"system": "rule", "history": [["a", "b"]]}
    assert from_preference(values | more).messages == (SYSTEM, turn("user", "a"), turn("assistant", "b"), asked)
    whole = {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD], "system": "other"}
    assert from_preference(whole).messages == (SYSTEM, USER)


@pytest.mark.parametrize("column", conversations.TURN_COLUMNS)
@pytest.mark.parametrize("answers", [("good", "bad"), ([GOOD], [BAD]), (GOOD, BAD)])
def test_a_conversation_may_end_with_the_answer_that_was_chosen(column: str, answers: tuple[Any, Any]) -> None:
    chosen, rejected = answers
    assert from_preference({column: [USER, GOOD], "chosen": chosen, "rejected": rejected}) == CHOICE
    assert from_preference({column: [USER], "chosen": chosen, "rejected": rejected}) == CHOICE


# --- one answer that is good or not


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ask", "completion": "say"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": ANSWER},
        {"prompt": "ask", "completion": [USER, ANSWER]},
        {"question": "ask", "answer": "say"},
        {"instruction": "ask", "input": "", "output": "say"},
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
        {"dialogue": "A: hi", "prompt": "ask", "response": "say"},
        {"messages": [USER, ANSWER], "prompt": "another text"},
    ],
    ids=lambda row: ",".join(row),
)
@pytest.mark.parametrize("column", preferences.LABEL_COLUMNS)
def test_an_answer_and_whether_it_is_good(row: dict[str, Any], column: str) -> None:
    for label in (True, "True", "true", " TRUE", 1, "1", 1.0, "1.0"):
        expected = Example(messages=(USER, ANSWER), learned=(False, True), label=True)
        assert from_unpaired({**row, column: label}) == expected
    for label in (False, "False", "false", 0, "0", 0.0, "0.0"):
        expected = Example(messages=(USER, ANSWER), learned=(False, True), label=False)
        assert from_unpaired({**row, column: label}) == expected


def test_only_the_last_answer_is_judged() -> None:
    example = from_unpaired({"messages": [USER, HM, MORE, {**ANSWER, "train": False}, USER], "label": True})
    assert (example.messages, example.learned) == ((USER, HM, MORE, ANSWER), (False, False, False, True))
    assert example.notes == ("1 turn after the last answer left out",)


def test_the_tag_counts_where_a_label_is_a_class() -> None:
    assert from_unpaired({"prompt": "ask", "completion": "say", "label": "law", "kto_tag": False}).label is False


# --- what is asked


def test_the_other_columns_of_a_prompt_are_for_rewards() -> None:
    row = {"prompt": "ask", "answer": "2", "meta": {"a": [1]}, "nothing": None}
    rewards = {"answer": "2", "meta": {"a": [1]}, "nothing": None}
    assert from_prompt(row) == Example(messages=(USER,), columns=rewards)
    used = {"system": "rule", "tools": TOOLS, "history": []}
    example = from_prompt(row | used | {"prompt": [USER]})
    assert (example.messages, example.columns) == ((SYSTEM, USER), rewards)
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)
    assert from_prompt({"messages": [USER, HM, MORE], "answer": "2"}).columns == {"answer": "2"}


@pytest.mark.parametrize("column", [*preferences.PROMPT_COLUMNS, *conversations.TURN_COLUMNS])
def test_a_prompt_may_have_many_names(column: str) -> None:
    assert from_prompt({column: [USER]}).messages == (USER,)


def test_turns_are_a_prompt_before_a_text_is() -> None:
    assert from_prompt({"prompt": "more", "messages": [USER, HM, MORE]}).messages == (USER, HM, MORE)
    assert from_prompt({"prompt": [USER], "messages": [MORE]}).messages == (USER,)
    assert from_prompt({"prompt": "ask", "chat": "A: hi"}).messages == (USER,)


# --- what is wrong

ANSWERS = {"chosen": "good", "rejected": "bad"}
WRONG: Mapping[str, tuple[Any, Mapping[str, Any], str]] = {
    "no answer": (from_preference, {"prompt": "ask", "chosen": "good"}, "column `rejected` is missing"),
    "a misspelt answer": (
        from_preference,
        {"prompt": "ask", "choosen": "good", "rejected": "bad"},
        "column `chosen` is missing; did you mean `chosen` where it says `choosen`?",
    ),
    "a number": (from_preference, {"prompt": "ask", "chosen": 1, "rejected": 2}, "`chosen` is a number, not text"),
    "no prompt": (
        from_preference,
        ANSWERS,
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same words",
    ),
    "no shared prompt": (
        from_preference,
        {"chosen": [USER, GOOD], "rejected": [MORE, BAD]},
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same turn",
    ),
    "answers without a prompt": (
        from_preference,
        {"chosen": [GOOD], "rejected": [BAD]},
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same turn",
    ),
    "two shapes": (
        from_preference,
        {"chosen": [GOOD], "rejected": "bad"},
        "column `prompt` is missing, and one of `chosen` and `rejected` is text, the other turns",
    ),
    "two shapes, the other way": (
        from_preference,
        {"chosen": "good", "rejected": [USER, BAD]},
        "column `prompt` is missing, and one of `chosen` and `rejected` is text, the other turns",
    ),
    "one transcript": (
        from_preference,
        {"chosen": "good", "rejected": "Human: ask\n\nAssistant: bad"},
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same words",
    ),
    "one transcript, the other way": (
        from_preference,
        {"chosen": "Human: ask\n\nAssistant: good", "rejected": "bad"},
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same words",
    ),
    "a shared space": (
        from_preference,
        {"chosen": " good", "rejected": " bad"},
        "column `prompt` is missing, and `chosen` and `rejected` do not begin with the same words",
    ),
    "nothing but the answer": (
        from_preference,
        {"messages": [GOOD], **ANSWERS},
        "the prompt ends with an assistant turn, so there is nothing to answer",
    ),
    "another prompt": (
        from_preference,
        {"prompt": [MORE], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "`chosen` begins with a turn by the user, but does not repeat the prompt",
    ),
    "no end": (
        from_preference,
        {"chosen": [USER, GOOD], "rejected": [USER, MORE]},
        "`rejected` does not end with an assistant turn",
    ),
    "answered already": (
        from_preference,
        {"messages": [USER, HM], **ANSWERS},
        "the prompt ends with an assistant turn, so there is nothing to answer",
    ),
    "a turn of an answer": (
        from_preference,
        {"prompt": "ask", "chosen": [{"role": "assistant"}], "rejected": "bad"},
        "turn 1 of `chosen` has no text in `content`",
    ),
    "pictures": (
        from_preference,
        {"prompt": "ask", **ANSWERS, "images": ["x"]},
        "the row has images or audio in `images`; only text can be learned",
    ),
    "no label": (from_unpaired, {"prompt": "ask", "completion": "say"}, "column `label` is missing"),
    "a misspelt label": (
        from_unpaired,
        {"prompt": "ask", "completion": "say", "lable": True},
        "column `label` is missing; did you mean `label` where it says `lable`?",
    ),
    "a class": (
        from_unpaired,
        {"prompt": "ask", "completion": "say", "label": "sports"},
        "`label` is 'sports', not true or false",
    ),
    "another number": (
        from_unpaired,
        {"prompt": "ask", "completion": "say", "kto_tag": 0.5},
        "`kto_tag` is 0.5, not true or false",
    ),
    "nothing that is judged": (from_unpaired, {"text": "x", "label": 1}, "column `prompt` is missing"),
    "no turns": (from_unpaired, {"chat": "x", "label": 1}, "`chat` is text, not a list of turns"),
    "nothing asked": (from_prompt, {"text": "x"}, "column `prompt` is missing"),
    "nearly asked": (
        from_prompt,
        {"promt": "x"},
        "column `prompt` is missing; did you mean `prompt` where it says `promt`?",
    ),
    "asked and answered": (
        from_prompt,
        {"prompt": [USER, ANSWER]},
        "the prompt ends with an assistant turn, so there is nothing to answer",
    ),
    "a picture asked about": (
        from_prompt,
        {"prompt": "<image>ask", "image": "1.jpg"},
        "the row has images or audio in `image`; only text can be learned",
    ),
    "a prompt beside other beginnings": (
        from_preference,
        {"prompt": "ask", "chosen": [USER, GOOD], "rejected": [MORE, BAD]},
        "`chosen` and `rejected` do not begin with the same turn",
    ),
    "a number asked": (from_prompt, {"prompt": 7}, "`prompt` is a number, not text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_row_is_reported_in_one_sentence(case: str) -> None:
    converter, values, message = WRONG[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        converter(values)
    assert str(error.value) == message


# --- answers under other names


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_answers_may_be_called_as_turns_are(column: str) -> None:
    asked, good, bad = ({"role": role, "content": role} for role in ("user", "assistant", "assistant"))
    good, bad = {**good, "content": "good"}, {**bad, "content": "bad"}
    values = {f"chosen_{column}": [asked, good], f"rejected_{column}": [asked, bad], "chosen_score": 1.0}
    example = from_preference(values)
    assert (example.messages, example.chosen, example.rejected) == ((asked,), (good,), (bad,))
    assert formats.detect_format(list(values), [values]) == "preference"
    assert from_preference({**values, "chosen": "own", "rejected": "other", "prompt": "p"}).answer == "own"
    with pytest.raises(ValueError, match="column `chosen` is missing"):
        from_preference({f"chosen_{column}": "words", f"rejected_{column}": "others"})


ASKED = {"messages": [USER], "tools": TOOLS, "parallel_tool_calls": True}
LIKE_OPENAI = {"input": ASKED, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
OBJECTS = {
    "chosen": {"messages": [USER, GOOD], "tools": TOOLS},
    "rejected": {"messages": [USER, BAD], "tools": TOOLS},
}


@pytest.mark.parametrize(
    "values",
    [
        LIKE_OPENAI,
        {name: json.dumps(value) for name, value in LIKE_OPENAI.items()},
        OBJECTS,
        {name: json.dumps(value) for name, value in OBJECTS.items()},
        {**OBJECTS, "rejected": {"conversations": [USER, BAD]}},
        {**OBJECTS, "rejected": [USER, BAD]},
        {name: {**value, "messages": value["messages"][1:]} for name, value in OBJECTS.items()} | {"prompt": "ask"},
    ],
    ids=["OpenAI", "OpenAI as JSON", "objects", "JSON", "one with tools", "one object", "answers alone"],
)
def test_answers_in_objects_are_read_with_their_tools(values: dict[str, Any]) -> None:
    example = from_preference(values)
    assert (example.messages, example.chosen, example.rejected) == ((USER,), (GOOD,), (BAD,))
    assert [tool["function"] for tool in example.tools or ()] == TOOLS
    assert formats.detect_format(list(values), [values]) == "preference"


def test_answers_in_objects_with_different_tools_are_refused() -> None:
    other = {**OBJECTS["rejected"], "tools": [{"name": "g"}]}
    with pytest.raises(ValueError, match="`chosen` and `rejected` offer different tools"):
        from_preference({**OBJECTS, "rejected": other})


def test_an_object_without_turns_is_an_answer_as_it_is() -> None:
    row = {"prompt": "ask", "chosen": '{"messages": 3}', "rejected": '{"messages": []}'}
    assert [from_preference(row).chosen[0]["content"]] == [row["chosen"]]


# --- turns of an answer that are not learned


def test_a_turn_of_an_answer_that_is_not_learned() -> None:
    first = {**HM, "train": False}
    example = from_preference({"prompt": [USER], "chosen": [first, MORE, GOOD], "rejected": [first, MORE, BAD]})
    assert (example.chosen_learned, example.rejected_learned) == ((False, False, True), (False, False, True))
    assert [learned for _, learned in example.conversations] == [(False, False, False, True)] * 2
    whole = from_preference({"chosen": [USER, first, MORE, GOOD], "rejected": [USER, BAD]})
    assert (whole.messages, whole.chosen_learned, whole.rejected_learned) == ((USER,), (False, False, True), None)
    assert [learned for _, learned in whole.conversations] == [(False, False, False, True), (False, True)]
    last = {**GOOD, "loss_mask": 0}
    repeated = from_preference({"prompt": [USER], "chosen": [USER, HM, MORE, last], "rejected": "no"})
    assert repeated.chosen_learned == (True, False, False)


def test_an_answer_of_which_nothing_is_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="`rejected` has no turn that is learned"):
        from_preference({"prompt": [USER], "chosen": [GOOD], "rejected": [{**BAD, "weight": 0}]})
    with pytest.raises(ValueError, match="`train` is False, so nothing of the row would be learned"):
        from_preference({"prompt": "ask", "chosen": "good", "rejected": "bad", "train": False})
    with pytest.raises(ValueError, match="`weights` does not say which answer it is about: mark their turns"):
        from_preference({"prompt": [USER], "chosen": [HM, MORE, GOOD], "rejected": [BAD], "weights": [0, 1]})
