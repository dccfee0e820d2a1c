"""Rows to imitate: what is asked, what is answered, what of it is learned, and what is wrong with a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Example
from mlflow_ft.builtin import formats
from mlflow_ft.builtin.formats import conversations
from mlflow_ft.builtin.formats.conversations import from_alpaca, from_pair, from_text, from_turns
from mlflow_ft.builtin.formats.turns import SYSTEM_COLUMNS
from mlflow_ft.rows import Opaque

SYSTEM = {"role": "system", "content": "rule"}
USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
ASKED = Example(messages=(USER, ANSWER))
TOOLS = [{"name": "f"}]
from_prompt_completion = from_pair(("prompt",), ("completion", "response"))
from_question_answer = from_pair(*formats.PAIRS["question-answer"])


def turn(role: str, words: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": words, **more}


# --- turns


def test_what_the_assistant_says_is_learned_unless_a_turn_says_otherwise() -> None:
    assert from_turns({"messages": [SYSTEM, USER, ANSWER]}) == Example(messages=(SYSTEM, USER, ANSWER))
    example = from_turns({"messages": [USER, {**ANSWER, "train": False}, USER, {**ANSWER, "weight": 1}]})
    assert (example.messages, example.learned) == ((USER, ANSWER, USER, ANSWER), (False, False, False, True))
    assert from_turns({"messages": [{**USER, "weight": 1}, ANSWER]}).learned is None
    assert from_turns({"messages": [USER, {**ANSWER, "weight": 0}]}).learned == (False, False)


def test_a_first_word_of_the_assistants_is_read_and_not_learned() -> None:
    example = from_turns({"messages": [ANSWER, USER, ANSWER]})
    assert (example.messages, example.learned) == ((ANSWER, USER, ANSWER), (False, False, True))
    assert example.notes == ("the conversation begins with the assistant; that turn is read, not learned",)
    example = from_turns({"messages": [SYSTEM, ANSWER, USER, ANSWER]})
    assert example.learned == (False, False, False, True)
    assert from_turns({"messages": [ANSWER]}).learned == (False,)
    told_already = from_turns({"messages": [{**ANSWER, "train": False}, USER, ANSWER]})
    assert (told_already.learned, told_already.notes) == ((False, False, True), ())


@pytest.mark.parametrize(
    ("behind", "note"),
    [([USER], "1 turn after the last answer left out"), ([USER, USER], "2 turns after the last answer left out")],
)
def test_turns_without_an_answer_are_left_out_and_reported(behind: list[Any], note: str) -> None:
    assert from_turns({"messages": [USER, ANSWER, *behind]}) == Example(messages=(USER, ANSWER), notes=(note,))


def test_an_empty_answer_is_not_refused_by_the_format() -> None:
    assert from_turns({"messages": [USER, turn("assistant", "")]}).messages[-1] == turn("assistant", "")
    assert from_prompt_completion({"prompt": "ask", "completion": ""}).messages[-1] == turn("assistant", "")


@pytest.mark.parametrize("column", conversations.TURN_COLUMNS)
def test_the_turns_may_have_many_names(column: str) -> None:
    assert from_turns({column: [USER, ANSWER]}) == ASKED
    assert from_turns({"messages": None, column: json.dumps([USER, ANSWER])}) == ASKED
    others = {name: "A: hi" for name in conversations.TURN_COLUMNS if name != column}
    assert from_turns({**others, column: [USER, ANSWER]}) == ASKED


@pytest.mark.parametrize("column", SYSTEM_COLUMNS)
def test_a_system_prompt_may_be_in_a_separate_column(column: str) -> None:
    expected = Example(messages=(SYSTEM, USER, ANSWER))
    assert from_turns({"messages": [USER, ANSWER], column: "rule"}) == expected
    assert from_turns({"messages": [SYSTEM, USER, ANSWER], column: "other"}).messages == expected.messages
    assert from_alpaca({"instruction": "ask", "output": "say", column: "rule"}) == expected
    assert from_prompt_completion({"prompt": [USER], "completion": [ANSWER], column: "rule"}) == expected
    noted = replace(expected, notes=(f"`{column}` left out: the turns already begin with a system prompt",))
    assert from_prompt_completion({"prompt": [SYSTEM, USER], "completion": [ANSWER], column: "other"}) == noted
    whole = {"prompt": "ask", "completion": [SYSTEM, USER, ANSWER], column: "other"}
    assert from_prompt_completion(whole) == noted
    assert from_prompt_completion({**whole, "completion": [USER, ANSWER], column: "rule"}) == expected
    for nothing in ("", " \n", None):
        assert from_turns({"messages": [USER, ANSWER], column: nothing}) == ASKED
        assert from_alpaca({"instruction": "ask", "output": "say", column: nothing}) == ASKED


def test_a_system_prompt_keeps_each_turns_wish() -> None:
    example = from_turns({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER], "system": "rule"})
    assert example.learned == (False, False, False, False, True)


def test_tools_are_handed_on() -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    assert from_turns({"messages": [USER, ANSWER], "tools": TOOLS}).tools == tools
    assert from_prompt_completion({"prompt": "ask", "completion": "say", "tools": json.dumps(TOOLS)}).tools == tools


# --- alpaca


@pytest.mark.parametrize(
    ("more", "question"),
    [
        ({}, "ask"),
        ({"input": None}, "ask"),
        ({"input": " \n"}, "ask"),
        ({"input": "this"}, "ask\n\nthis"),
        ({"context": "that"}, "ask\n\nthat"),
        ({"input": "this", "context": "that"}, "ask\n\nthis\n\nthat"),
        ({"input": "ask"}, "ask\n\nask"),
    ],
)
def test_an_input_follows_the_instruction(more: dict[str, Any], question: str) -> None:
    example = from_alpaca({"instruction": "ask", "output": "say", **more})
    assert example == Example(messages=(turn("user", question), ANSWER))


@pytest.mark.parametrize("instruction", ["", " \n", None])
def test_an_input_may_be_the_whole_question(instruction: Any) -> None:
    values = {"instruction": instruction, "input": "ask", "output": "say"}
    assert from_alpaca(values) == ASKED
    usual = {"instruction": "do", "input": "this", "output": "say"}
    assert formats.detect_format(list(usual), [usual, values]) == "alpaca"
    with pytest.raises(ValueError, match=r"^column `instruction` is missing; did you mean `instruction` where it says"):
        from_alpaca({"instuction": "do", "input": "this", "output": "say"})


def test_a_prompt_that_is_made_of_its_context_has_it_once() -> None:
    example = from_prompt_completion({"prompt": "Read this: words. Ask?", "context": "words", "completion": "say"})
    assert example.messages[0]["content"] == "Read this: words. Ask?"
    example = from_prompt_completion({"prompt": "Ask?", "context": "words", "completion": "say"})
    assert example.messages[0]["content"] == "Ask?\n\nwords"


@pytest.mark.parametrize("history", [[["a", "b"], ["c", "d"]], '[["a", "b"], ["c", "d"]]', [("a", "b"), ("c", "d")]])
def test_earlier_rounds_are_learned_too(history: Any) -> None:
    rounds = (turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d"))
    values = {"instruction": "ask", "output": "say", "history": history, "system": "rule"}
    assert from_alpaca(values) == Example(messages=(SYSTEM, *rounds, USER, ANSWER))


@pytest.mark.parametrize("history", [None, "", [], "[]"])
def test_an_empty_history_counts_as_none(history: Any) -> None:
    assert from_alpaca({"instruction": "ask", "output": "say", "history": history}) == ASKED


# --- questions and answers


@pytest.mark.parametrize("prompt", ["ask", [USER], USER, json.dumps([USER]), [{"from": "human", "value": "ask"}]])
@pytest.mark.parametrize(
    "completion", ["say", [ANSWER], ANSWER, json.dumps([ANSWER]), [{"from": "gpt", "value": "say"}]]
)
def test_both_sides_may_be_text_or_turns(prompt: Any, completion: Any) -> None:
    assert from_prompt_completion({"prompt": prompt, "completion": completion}) == ASKED


def test_of_a_prompt_nothing_is_learned() -> None:
    prompt = [USER, turn("assistant", "hm"), turn("user", "more")]
    example = from_prompt_completion({"prompt": prompt, "completion": [ANSWER]})
    assert example == Example(messages=(*prompt, ANSWER), learned=(False, False, False, True))


def test_a_completion_may_say_which_of_its_turns_are_learned() -> None:
    completion = [{**ANSWER, "train": False}, USER, ANSWER]
    example = from_prompt_completion({"prompt": "ask", "completion": completion})
    assert (example.messages, example.learned) == ((USER, ANSWER, USER, ANSWER), (False, False, False, True))


@pytest.mark.parametrize("prompt", ["ask", [USER]])
def test_a_completion_may_repeat_the_prompt(prompt: Any) -> None:
    assert from_prompt_completion({"prompt": prompt, "completion": [USER, ANSWER]}) == ASKED
    longer = [SYSTEM, USER, turn("assistant", "hm"), USER, ANSWER]
    assert from_prompt_completion({"prompt": prompt, "completion": longer}).messages == tuple(longer)
    with pytest.raises(
        ValueError, match=r"^`completion` begins with a turn by the user, but does not repeat `prompt`$"
    ):
        from_prompt_completion({"prompt": prompt, "completion": [turn("user", "other"), ANSWER]})


@pytest.mark.parametrize("text", ["[1, 2, 3]", '{"a": 1}', '[{"name": "x"}]', "[INST] x [/INST]", '[["a", "b"]]'])
def test_json_may_be_what_is_asked_and_answered(text: str) -> None:
    example = from_prompt_completion({"prompt": text, "completion": text})
    assert example == Example(messages=(turn("user", text), turn("assistant", text)))


def test_calls_are_an_answer_where_there_are_tools() -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}]
    asked = {"query": "ask", "answers": json.dumps(calls)}
    answer = from_question_answer({**asked, "tools": TOOLS}).messages[-1]
    assert answer == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    assert from_question_answer(asked).messages[-1] == turn("assistant", json.dumps(calls))
    named = {"query": "ask", "answer": [{**ANSWER, "name": "bob"}], "tools": TOOLS}
    assert from_question_answer(named).messages[-1] == {**ANSWER, "name": "bob"}
    words = {"query": "ask", "answer": "I cannot do that.", "tools": TOOLS}
    assert from_question_answer(words).messages[-1] == turn("assistant", "I cannot do that.")


def test_an_empty_column_gives_way_to_one_that_is_not() -> None:
    assert from_question_answer({"question": "", "query": "ask", "answer": "", "response": "say"}) == ASKED
    assert from_question_answer({"question": "ask", "answer": ""}).messages[-1] == turn("assistant", "")


NAMES = [(name, *columns) for name, columns in formats.PAIRS.items()]
WORDS = st.text(max_size=12)


@given(st.sampled_from(NAMES), WORDS, WORDS, st.data())
def test_a_question_and_its_answer_are_the_same_under_all_names(
    names: tuple[str, tuple[str, ...], tuple[str, ...]], asked: str, answered: str, data: st.DataObject
) -> None:
    _, questions, answers = names
    first, other = data.draw(st.sampled_from(questions)), data.draw(st.sampled_from(answers))
    if first == other:
        return
    expected = from_turns({"messages": [turn("user", asked), turn("assistant", answered)]})
    assert from_pair(questions, answers)({first: asked, other: answered}) == expected
    as_turns = {first: [turn("user", asked)], other: {"from": "gpt", "value": answered}}
    assert from_pair(questions, answers)(as_turns) == expected


# --- transcripts


@pytest.mark.parametrize(
    ("written", "turns"),
    [
        ("\n\nHuman: ask\n\nAssistant: say", [USER, ANSWER]),
        (
            "Human: ask\n\nAssistant: say\n\nHuman: more\n\nAssistant:",
            [USER, ANSWER, turn("user", "more"), turn("assistant", "")],
        ),
        ("\n\nHuman:ask\n\nAssistant:say", [USER, ANSWER]),
        ("Human: a\n\nb: c\n\nAssistant: Human: d", [turn("user", "a\n\nb: c"), turn("assistant", "Human: d")]),
        ("\n\nHuman:  ask \n\nAssistant: say\n", [USER, ANSWER]),
        ("I am Human: yes\n\nAssistant: no", None),
        ("yes\n\nHuman: ask\n\nAssistant: no", None),
        ("Human: ask", None),
        ("words", None),
        ("", None),
    ],
)
def test_a_transcript_is_read_as_turns(written: str, turns: Any) -> None:
    assert conversations.transcript(written) == turns


def test_a_prompt_may_be_a_transcript_up_to_the_answer() -> None:
    asked = "\n\nHuman: ask\n\nAssistant: say\n\nHuman: more\n\nAssistant:"
    example = from_prompt_completion({"prompt": asked, "completion": " again"})
    assert example.messages == (USER, ANSWER, turn("user", "more"), turn("assistant", " again"))
    assert example.learned == (False, False, False, True)
    whole = "Human: ask\n\nAssistant: say"
    assert from_prompt_completion({"prompt": whole, "completion": "x"}).messages[0] == turn("user", whole)


# --- what is wrong

BAD: Mapping[str, tuple[Any, Mapping[str, Any], str]] = {
    "no column": (from_turns, {"text": "x"}, "column `messages` is missing"),
    "nearly a column": (
        from_turns,
        {"message": [USER, ANSWER]},
        "column `messages` is missing; did you mean `messages` where it says `message`?",
    ),
    "nearly another column": (
        from_turns,
        {"conversatons": [USER, ANSWER]},
        "column `messages` is missing; did you mean `conversations` where it says `conversatons`?",
    ),
    "nobody answers": (
        from_turns,
        {"messages": [USER, USER]},
        "the conversation has no assistant turn, so there is nothing to learn",
    ),
    "two texts": (from_turns, {"conversation": "a", "chat": "b"}, "`conversation` is text, not a list of turns"),
    "a number for calls": (
        from_question_answer,
        {"query": "q", "answer": 5, "tools": TOOLS},
        "`answer` is a number, not text",
    ),
    "a turn": (
        from_turns,
        {"chat": [USER, "say"]},
        "turn 2 of `chat` is text, not an object with `role` and `content`",
    ),
    "a system prompt": (from_turns, {"messages": [USER, ANSWER], "system": ["x"]}, "`system` is a list, not text"),
    "pictures": (
        from_turns,
        {"messages": [USER, ANSWER], "images": ["1.jpg"]},
        "the row has images or audio in `images`; only text can be learned",
    ),
    "missing": (from_alpaca, {"instruction": "ask"}, "column `output` is missing"),
    "null": (from_alpaca, {"instruction": "ask", "output": None}, "column `output` is missing"),
    "misspelt": (
        from_alpaca,
        {"instuction": "ask", "output": "say"},
        "column `instruction` is missing; did you mean `instruction` where it says `instuction`?",
    ),
    "in capitals": (
        from_alpaca,
        {"INSTRUCTION": "ask", "output": "say"},
        "column `instruction` is missing; did you mean `instruction` where it says `INSTRUCTION`?",
    ),
    "a number": (from_alpaca, {"instruction": "ask", "output": 7}, "`output` is a number, not text"),
    "an input": (from_alpaca, {"instruction": "ask", "input": 7, "output": "say"}, "`input` is a number, not text"),
    "a context": (
        from_question_answer,
        {"question": "ask", "answer": "say", "context": {"title": ["x"]}},
        "`context` is an object, not text",
    ),
    "a history": (
        from_alpaca,
        {"instruction": "ask", "output": "say", "history": "x"},
        "`history` is text, not a list of rounds",
    ),
    "a round": (
        from_alpaca,
        {"instruction": "ask", "output": "say", "history": [["a", "b"], ["c"]]},
        "round 2 of `history` is not a pair of a question and an answer",
    ),
    "turns of a side": (
        from_prompt_completion,
        {"prompt": [USER], "completion": [{"role": "assistent", "content": "x"}]},
        "turn 1 of `completion` has the unknown role 'assistent'; did you mean `assistant`?",
    ),
    "a side of no turns": (from_prompt_completion, {"prompt": [], "completion": "say"}, "`prompt` has no turns"),
    "only questions": (
        from_prompt_completion,
        {"prompt": [USER], "completion": [USER]},
        "the conversation has no assistant turn, so there is nothing to learn",
    ),
    "a nested call": (
        from_question_answer,
        {"query": "ask", "answers": [{"name": "f", "arguments": json.loads("[" * 102 + "]" * 102)}], "tools": TOOLS},
        "`answers` has a tool call with arguments that are nested more than 100 levels deep",
    ),
    "no text": (from_text, {"txt": "x"}, "column `text` is missing; did you mean `text` where it says `txt`?"),
    "a list": (from_text, {"text": ["x"]}, "`text` is a list, not text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_row_is_reported_in_one_sentence(case: str) -> None:
    converter, values, message = BAD[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        converter(values)
    assert str(error.value) == message


def test_a_picture_counts_where_a_turn_has_a_place_for_it() -> None:
    assert from_turns({"messages": [USER, ANSWER], "images": [], "videos": None, "audios": "x"}) == ASKED
    assert from_turns({"messages": [USER, ANSWER], "image": "https://x/logo.png"}) == ASKED
    assert from_turns({"messages": [turn("user", "<image>"), ANSWER], "image": None}).notes == ()
    with pytest.raises(ValueError, match="the row has images or audio in `image`; only text can be learned"):
        from_turns({"conversations": [turn("user", "<image>\nask"), ANSWER], "image": "1.jpg"})


def test_text_is_learned_as_it_is() -> None:
    assert from_text({"text": " words\n", "id": 1}) == Example(text=" words\n")


def test_a_system_column_next_to_another_system_prompt_is_left_out_and_noted() -> None:
    turns = [{"role": "system", "content": "Be brief."}, USER, ANSWER]
    same, other = (from_turns({"messages": turns, "system": text}) for text in ("Be brief.", "Be long."))
    assert same.messages == other.messages
    assert same.notes == ()
    assert other.notes == ("`system` left out: the turns already begin with a system prompt",)


# --- weights beside the turns

FOUR = [USER, ANSWER, USER, ANSWER]


@pytest.mark.parametrize(
    ("weights", "learned"),
    [
        ({"weights": [0, 0, 0, 1]}, (False, False, False, True)),
        ({"weights": [1, 0, 1, 1]}, (False, False, False, True)),
        ({"loss_weights": [1.0, None, 0.0, 1.0]}, None),
        ({"train_on_turns": [False, True]}, (False, False, False, True)),
        ({"weight": "[1, 0]"}, (False, True, False, False)),
        ({"loss": ["true", "false"]}, (False, True, False, False)),
        ({"weight": 1.0, "weights": None}, None),
    ],
)
def test_a_column_says_which_turns_are_learned(weights: dict[str, Any], learned: Any) -> None:
    assert from_turns({"messages": FOUR, **weights}).learned == learned


def test_a_column_of_weights_goes_with_the_turns_and_with_a_separate_system_prompt() -> None:
    example = from_turns({"messages": FOUR, "weights": [0, 0, 0, 1], "system": "be kind"})
    assert example.learned == (False, False, False, False, True)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weights": [0, 0.5, 0, 1]}, "`weights` has 0.5 for turn 2; a turn is learned or not"),
        ({"weights": [0, 1, 2]}, "`weights` has 3 weights for 4 turns"),
        ({"weights": ["x", 1]}, "`weights` has 'x' for turn 2; a turn"),
        ({"weights": []}, "`weights` has 0 weights for 4 turns"),
    ],
)
def test_a_column_of_weights_that_does_not_fit_is_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        from_turns({"messages": FOUR, **weights})


def test_a_column_of_weights_and_a_turn_must_say_the_same() -> None:
    turns = [USER, {**ANSWER, "weight": 0}]
    assert from_turns({"messages": turns, "weights": [0, 0]}).learned == (False, False)
    with pytest.raises(ValueError, match="`weights` and turn 2 disagree on whether the turn is learned"):
        from_turns({"messages": turns, "weights": [0, 1]})


def test_an_image_that_goes_with_the_text_is_left_out_and_noted() -> None:
    example = from_turns({"messages": [USER, ANSWER], "image": Opaque("an image")})
    assert example.notes == ("`image` left out: images and audio are not read",)
    with pytest.raises(ValueError, match="the row has images or audio in `image`"):
        from_turns({"messages": [turn("user", "see <image>"), ANSWER], "image": Opaque("an image")})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (datetime(2024, 5, 1, tzinfo=UTC), "a timestamp, not text; cast the column to text"),
        (date(2024, 5, 1), "a date, not text; cast the column to text"),
        (timedelta(1), "a duration, not text; cast the column to text"),
        (b"x", "binary data, not text; cast the column to text"),
        (Opaque("an image"), "an image, not text"),
        (7, "a number, not text"),
    ],
)
def test_what_is_not_text_is_refused_by_name(value: Any, words: str) -> None:
    for values in ({"prompt": "a", "completion": value}, {"prompt": "a", "completion": "b", "system": value}):
        column = "completion" if values["completion"] is value else "system"
        with pytest.raises(ValueError, match=f"^`{column}` is {words}$"):
            from_pair(("prompt",), ("completion",))(values)


TALK = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}]
PAIR = conversations.from_pair(("prompt",), ("completion",))


@pytest.mark.parametrize("prompt", ["a", [{"role": "user", "content": "a"}]])
@pytest.mark.parametrize(
    ("weights", "learned"),
    [
        ([0, 1], (False, False, False, True)),
        ([0, 0, 0, 1], (False, False, False, True)),
        ([1, 1, 0], (False, True, False, False)),
        ([None, 0, 1, 1], (False, False, False, True)),
        ([1, 1], None),
    ],
)
@pytest.mark.parametrize("column", ["weights", "loss_mask", "loss_masks", "train_mask"])
def test_a_column_of_weights_goes_with_a_prompt_and_a_completion(
    prompt: Any, weights: list[Any], learned: Any, column: str
) -> None:
    example = PAIR({"prompt": prompt, "completion": TALK, column: weights})
    assert (len(example.messages), example.learned) == (4, learned)


def test_weights_that_do_not_fit_a_prompt_and_a_completion_are_refused() -> None:
    row = {"prompt": [{"role": "user", "content": "a"}, *TALK[:2]], "completion": TALK}
    assert PAIR({**row, "weights": [1, 1, 1]}).learned == (False, False, False, True, False, True)
    with pytest.raises(ValueError, match="`weights` has 3 weights, which fit in several ways: give one for every turn"):
        PAIR({**row, "weights": [1, 0, 1]})
    with pytest.raises(ValueError, match="`weights` has 5 weights for 6 turns"):
        PAIR({**row, "weights": [1, 0, 1, 0, 1]})
    marked = [{**TALK[0], "train": True}, *TALK[1:]]
    with pytest.raises(ValueError, match="`weights` and turn 2 disagree"):
        PAIR({"prompt": "a", "completion": marked, "weights": [0, 1]})


@pytest.mark.parametrize(
    "mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}, {"trainable": "False"}, {"loss_mask": 0}]
)
@pytest.mark.parametrize("row", [{"messages": FOUR}, {"prompt": "a", "completion": "b"}, {"text": "words"}])
def test_a_row_of_which_nothing_is_learned_is_refused(row: dict[str, Any], mark: dict[str, Any]) -> None:
    convert = from_turns if "messages" in row else conversations.from_text if "text" in row else PAIR
    with pytest.raises(ValueError, match=rf"`{next(iter(mark))}` is .*, so nothing of the row would be learned; leave"):
        convert({**row, **mark})
    convert({**row, "train": True, "weight": 1, "loss_weight": 0.5, "trainable": None, "loss_mask": "train"})
