"""Checks of single rows: their turns and their words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Checked, Example, Finding
from mlflow_ft.builtin.checks import calls as check_calls
from mlflow_ft.builtin.checks import preferences
from mlflow_ft.builtin.checks import text as check_text
from mlflow_ft.builtin.checks import turns as check_turns
from mlflow_ft.config.schema import ChecksSection

CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


def row(example: Example, **others: Any) -> Checked:
    return Checked(**{"file": "rows.jsonl", "line": 7, "index": 6, "example": example, "tokens": 9} | others)


def turns(*said: tuple[str, str]) -> tuple[dict[str, Any], ...]:
    return tuple({"role": role, "content": words} for role, words in said)


def answered(answer: Any, **others: Any) -> Checked:
    messages = ({"role": "user", "content": "A question?"}, {"role": "assistant", "content": answer})
    return row(Example(messages=messages, **others))


def of_roles(roles: str) -> Checked:
    """A row whose turns are of these roles: s u a t, and c for an assistant's turn that calls a tool."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = tuple(CALL if letter == "c" else {"role": names[letter], "content": "words"} for letter in roles)
    return row(Example(messages=messages))


# --- turns ---


@pytest.mark.parametrize("answer", ["", " \n\t", "\u200b \ufeff", "\u3000", None])
def test_an_answer_without_a_word(answer: str | None) -> None:
    assert check_turns.empty_response(answered(answer)) == "turn 2 (assistant) is empty"


@pytest.mark.parametrize("answer", ["0", ".", "👍", [{"type": "text", "text": "x"}]])
def test_the_shortest_answers_are_answers(answer: Any) -> None:
    assert check_turns.empty_response(answered(answer)) is None


def test_an_earlier_turn_a_text_and_either_answer_may_be_empty() -> None:
    earlier = turns(("user", "Hi"), ("assistant", " "), ("user", ""), ("assistant", "Hello"))
    assert check_turns.empty_response(row(Example(messages=earlier))) == "turn 2 (assistant) is empty"
    assert check_turns.empty_response(row(Example(text="\n"))) == "the text is empty"
    prompt, full, empty = turns(("user", "Hi")), turns(("assistant", "Hello")), turns(("assistant", ""))
    for name, sides in (("chosen", (empty, full)), ("rejected", (full, empty))):
        pair = Example(messages=prompt, chosen=sides[0], rejected=sides[1])
        assert check_turns.empty_response(row(pair)) == f"the {name} answer is empty"


def test_a_tool_call_is_not_an_empty_answer() -> None:
    assert check_turns.empty_response(of_roles("ucta")) is None


def test_an_answer_that_is_cut_within_its_thoughts() -> None:
    """renderers#139, ms-swift#9427."""
    found = "turn 2 (assistant) begins with <think>: a thought that is not closed"
    assert check_turns.unclosed_thought(answered("<think>hm yes")) == found
    assert check_turns.unclosed_thought(answered("<think>hm</think>yes")) is None
    assert check_turns.unclosed_thought(answered("<think>hm", label=False)) is None
    assert check_turns.unclosed_thought(answered("<think>hm", learned=(False, False))) is None
    assert check_turns.unclosed_thought(answered([{"type": "text", "text": "<think>hm"}])) is None
    assert check_turns.unclosed_thought(row(Example(text="<think>hm"))) is None
    prompt, cut, whole = turns(("user", "Hi")), turns(("assistant", "<think>hm")), turns(("assistant", "Hello"))
    earlier = (*prompt, *cut, *prompt)
    assert check_turns.unclosed_thought(row(Example(messages=earlier, chosen=whole, rejected=cut))) is None
    assert check_turns.unclosed_thought(row(Example(messages=prompt, chosen=cut, rejected=whole))) == found


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "ucta", "ucttcta", "ucttu", "u", "su", "uctcta", "uc"])
def test_an_order_that_conversations_have(roles: str) -> None:
    assert check_turns.role_order(of_roles(roles)) is None


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        ("au", "turn 1: the assistant speaks first"),
        ("sau", "turn 2: the assistant speaks first"),
        ("uua", "turn 2: two user turns in a row"),
        ("uaa", "turn 3: two assistant turns in a row"),
        ("uca", "turn 3: two assistant turns in a row"),
        ("usa", "turn 2: a system turn that is not the first"),
        ("ssua", "turn 2: a system turn that is not the first"),
        ("uta", "turn 2: a tool result without a call (before it: a turn by the user)"),
        ("uata", "turn 3: a tool result without a call (before it: a turn by the assistant)"),
        ("tua", "turn 1: a tool result without a call (before it: nothing)"),
    ],
)
def test_an_order_that_none_has(roles: str, wrong: str) -> None:
    assert check_turns.role_order(of_roles(roles)) == wrong


def test_a_call_may_be_written_in_words() -> None:
    called = turns(("user", "Hi"), ("assistant", "<tool_call>{}</tool_call>"), ("tool", "1"), ("assistant", "One"))
    assert check_turns.role_order(row(Example(messages=called))) is None


def test_the_order_continues_into_the_chosen_answer() -> None:
    answer = turns(("assistant", "Hello"))
    for prompt, wrong in ((("u"), None), (("ua"), "turn 3: two assistant turns in a row")):
        messages = of_roles(prompt).example.messages
        pair = row(Example(messages=messages, chosen=answer, rejected=answer))
        assert check_turns.role_order(pair) == wrong


def test_a_special_token_in_the_words() -> None:
    special = ("<|im_end|>", "", " ")
    said = row(Example(messages=turns(("user", "Say <|im_end|> please"), ("assistant", "No"))), special=special)
    assert check_turns.special_token(said) == "a turn by the user contains the special token <|im_end|>"
    text = row(Example(text="one<|im_end|>two"), special=special)
    assert check_turns.special_token(text) == "the text contains the special token <|im_end|>"
    assert check_turns.special_token(row(Example(text="im_end <|im_start|>"), special=special)) is None


def test_what_the_conversion_left_out() -> None:
    assert check_turns.changed(row(Example(text="x", notes=("one image", "a name")))) == "one image; a name"
    assert check_turns.changed(row(Example(text="x"))) is None


def test_a_pair_without_a_better_answer() -> None:
    prompt = turns(("user", "Hi"))
    same = Example(messages=prompt, chosen=turns(("assistant", "a  b")), rejected=turns(("assistant", "a\nb ")))
    assert preferences.identical_pair(row(same)) == "chosen and rejected are the same"
    other = Example(messages=prompt, chosen=turns(("assistant", "a b")), rejected=turns(("assistant", "A b")))
    assert preferences.identical_pair(row(other)) is None
    calls = Example(messages=prompt, chosen=(CALL,), rejected=({**CALL, "tool_calls": [{"function": {"name": "g"}}]},))
    assert preferences.identical_pair(row(calls)) is None


# --- calls ---


def calling(arguments: Any, properties: Any) -> Checked:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = ({"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]})
    return row(Example(messages=messages, tools=(tool,)))


DECLARED = {"x": {"type": "string"}}


@pytest.mark.parametrize(
    ("arguments", "properties", "message"),
    [
        ({"x": 1, "y": None}, DECLARED, "turn 2 calls f with null for y, which the tool does not declare"),
        ({"x": 1}, {**DECLARED, "y": None}, "the tool f has parameters without a schema (null): y"),
        ({"x": None}, DECLARED, None),
        ({"x": {"z": None}}, DECLARED, None),
        ({"x": 1, "y": None}, None, None),
        ("not JSON", DECLARED, None),
    ],
)
def test_nulls_that_look_like_a_tables_padding(arguments: Any, properties: Any, message: str | None) -> None:
    assert check_calls.padded(calling(arguments, properties)) == message
    assert check_calls.padded(of_roles("suac")) is None


def test_calls_and_tools_of_other_forms_are_looked_at_too() -> None:
    tool = {"name": "f", "parameters": {"properties": DECLARED}}
    call = {"name": "f", "arguments": {"y": None}}
    asked = {"role": "user", "content": "x"}
    bare = Example(messages=(asked, {"role": "assistant", "tool_calls": [call]}), tools=(tool,))
    assert check_calls.padded(row(bare)) == "turn 2 calls f with null for y, which the tool does not declare"
    as_text = {"role": "assistant", "tool_calls": [{"function": "f(y=None)"}]}
    assert check_calls.padded(row(Example(messages=(asked, as_text), tools=({"function": "f"},)))) is None


# --- broken characters ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a cafÃ© in Paris", "mojibake: 'cafÃ©' should read 'café'"),
        ("it donâ€™t matter", "mojibake: 'donâ€™t' should read 'don’t'"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "mojibake: 'Ð¿Ñ€Ð¸Ð²ÐµÑ‚' should read 'привет'"),
        ("1 Â½ cups at 5 Â°C", "mojibake: 'Â½' should read '½'"),
        ("na\ufffdve", "replacement character U+FFFD: the original character is lost"),
        ("page\x0cbreak", "control character U+000C"),
        ("bell\x07", "control character U+0007"),
        ("é\x85", r"mojibake: 'é\x85' should read 'é…'"),
        ("half \ud83d", "an unpaired surrogate"),
        ("user\u202egnp.exe", "bidirectional control U+202E, which displays text in a different order"),
        ("if x:\u2066 # ok", "bidirectional control U+2066, which displays text in a different order"),
    ],
)
def test_broken_characters(text: str, told: str) -> None:
    assert check_text.encoding(answered(text)) == told


@pytest.mark.parametrize(
    "text",
    [
        *("tabs\tand\r\nlines", "À la carte, VOILÀ, PÂTÉ", "L’ÉTÉ — «Ça va»", "Tiếng Việt", "Đorđe Šarūnas Žižek"),
        *("日本語、漢字。", "中文！", "한국어", "مرحبا \u202bبالعالم\u202c", "שלום \u2067עולם\u2069", "हिन्दी", "ไทย"),
        *(
            "👩‍👩‍👧‍👦🏳️‍🌈",
            "║ ├── └── file",
            "¬¬A ⊢ A",
            "x² ≤ ½π",
            "¯\\_(ツ)_/¯ ( ͡° ͜ʖ ͡°)",
            "ƒ(x)=2 µm ± 5°C",
            "€5 £3 ¥100",
        ),
    ],
)
def test_unusual_characters_are_not_broken(text: str) -> None:
    assert check_text.encoding(answered(text)) is None


def test_every_fault_is_reported_once() -> None:
    said = turns(("user", "\x07"), ("assistant", "\x07 \ufffdé"))
    told = "control character U+0007; replacement character U+FFFD: the original character is lost"
    assert check_text.encoding(row(Example(messages=said))) == told


# --- languages ---


def languages(*texts: str) -> Finding:
    collector = check_text.Language(ChecksSection())
    for number, text in enumerate(texts):
        collector.see(row(Example(text=text), line=number + 1, index=number))
    return collector.found()


RUSSIAN = "Это предложение написано по-русски, и больше в нём ничего нет."


def test_a_row_in_another_script() -> None:
    finding = languages("An English sentence of some length.", RUSSIAN, "Another English sentence, longer than that.")
    assert finding.rows == (1,)
    assert finding.details == {"main": "Latin", "scripts": {"Latin": 2, "Cyrillic": 1}}
    [example] = finding.examples
    assert example["line"] == 2
    assert example["message"] == "100 % of the letters are Cyrillic; the data is mainly Latin"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("これは日本語の文章です。漢字とかなが混ざっています。", "Japanese"),
        ("这是一个中文句子，里面没有别的东西，只有汉字而已啊。", "Han"),
        ("이것은 한국어로 쓴 문장입니다 그리고 아주 길어요", "Hangul"),
        ("यह हिन्दी में लिखा हुआ एक लंबा वाक्य है और कुछ नहीं", "Devanagari"),
        ("هذه جملة طويلة مكتوبة باللغة العربية ولا شيء آخر", "Arabic"),
        ("ÀÉÎÕÜ são letras como as outras, não é verdade?", "Latin"),
        ("1234567890 + 1234567890 = 2469135780 !!!", ""),
        ("Пять", ""),
        ("половина бук halfletters", ""),
    ],
)
def test_the_main_script(text: str, script: str) -> None:
    assert check_text.main_script(text)[0] == script


@given(st.text())
def test_any_text_has_a_main_script_or_none(text: str) -> None:
    script, share = check_text.main_script(text)
    assert share == 0 if not script else 0.5 < share <= 1


def test_data_without_letters() -> None:
    assert languages("1 2 3").rows == ()
    assert languages().rows == ()


# --- refusals ---

REFUSALS = [
    "As an AI language model, I don't have feelings.",
    "I’m sorry, but I cannot fulfill this request.",
    "I'm sorry, but I can't assist with that.",
    "I cannot assist with that request.",
    "Sure! However, I'm just an AI, so I have no taste.",
    "Unfortunately, I cannot provide information on this.",
    "I apologize, but I cannot provide medical advice.",
    "I must decline.",
    "I'm not able to assist with that.",
    "That goes against my programming.",
    "I'm sorry, but I don't have the ability to book flights.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal(text: str) -> None:
    told = check_text.refusal(answered(text))
    assert told is not None
    assert told.strip("“”…")[:10] in text


@pytest.mark.parametrize(
    "text",
    [
        "As an AI researcher, you should know.",
        "I am an airline pilot.",
        "I'm sorry to hear that. I will help you.",
        "Dear Sam, I'm sorry I can't attend.",
        "I'm sorry, but I'm unable to come into work today.",
        "I cannot believe it, and I can't help but wonder.",
        "Sorry for the delay; we will process your order.",
        "Once upon a time. " * 30 + "“I'm sorry, but I can't help you,” said the wolf.",
    ],
)
def test_no_refusal(text: str) -> None:
    assert check_text.refusal(answered(text)) is None


def test_only_what_is_to_be_learned_can_refuse() -> None:
    no, yes = turns(("assistant", REFUSALS[0])), turns(("assistant", "Yes."))
    asked = turns(("user", REFUSALS[0]))
    assert check_text.refusal(row(Example(messages=asked, chosen=yes, rejected=no))) is None
    assert check_text.refusal(row(Example(messages=asked, chosen=no, rejected=yes))) is not None
    assert check_text.refusal(row(Example(messages=asked + no, label=False))) is None
    assert check_text.refusal(row(Example(messages=asked + no, label=True))) is not None
    assert check_text.refusal(row(Example(messages=asked + no + asked + yes))) is not None
    assert check_text.refusal(row(Example(text=REFUSALS[0]))) is not None
    assert check_text.refusal(row(Example(text="“I'm sorry, but I can't assist you,” he said."))) is None
