"""A row is rendered the same way every time, or refused before training; dates in it are not learned."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.masking import Encoder, MaskError, Tokenised
from mlflow_ft.rows import Example
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML, CHATML_TOKENS
from tests.engine.templates.qwen import QWEN25, QWEN_TOKENS

DAY = datetime.fromisoformat("2026-11-28T09:12:31")
TALK = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
ROW, PROMPT = Example(messages=TALK), Example(messages=TALK[:1])
PAIR = Example(messages=TALK[:1], chosen=TALK[1:], rejected=({"role": "assistant", "content": "no"},))
WORDS = "{{ message['content'] }}"
SAID = "{% if message.role == 'assistant' %}MORE {% endif %}{{ message['content'] }}"


def encoder(jinja: str, added: Any = CHATML_TOKENS) -> Encoder:
    return Encoder(tokens.make(jinja, added, eos="<|im_end|>"), max_length=9999)


def tokenise(maker: Encoder, row: Example) -> Tokenised | MaskError:
    [result] = maker.tokenise([row])
    return result if isinstance(result, MaskError) else result[0]


def refused(jinja: str, row: Example = ROW) -> str:
    with clock.held(DAY):
        result = tokenise(encoder(jinja), row)
    assert isinstance(result, MaskError), result.text
    assert "--data.chat_template" in str(result)
    assert result.text, "the row is shown as rendered"
    return str(result)


def proved(jinja: str, row: Example = ROW) -> tuple[str, dict[str, str]]:
    """The text, and the dates that were written."""
    maker = encoder(jinja)
    with clock.held(DAY):
        result = tokenise(maker, row)
    assert not isinstance(result, MaskError), f"{result}: {result.text}"
    return result.text, maker.dates


@pytest.mark.parametrize("row", [ROW, PROMPT, PAIR], ids=["conversation", "prompt", "preference"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("{{ ['a', 'b', 'c'] | random }}", "draws random numbers"),
        ("{{ ['same', 'same'] | random }}", "draws random numbers"),
        ("{{ lipsum(n=1, html=false) }}", "draws random numbers"),
        ("{{ raise_exception }}", "writes the row differently each time"),
        ("{{ joiner() }}", "writes the row differently each time"),
    ],
)
def test_what_changes_by_itself_is_refused(more: str, reason: str, row: Example) -> None:
    assert reason in refused(more + CHATML, row)


def test_a_draw_that_a_later_row_alone_asks_for_is_refused() -> None:
    maker = encoder("{% if 'luck' in messages[0].content %}{{ ['a', 'b'] | random }}{% endif %}" + CHATML)
    assert isinstance(tokenise(maker, ROW), Tokenised), "nothing is drawn for it"
    lucky = Example(messages=({"role": "user", "content": "luck"}, TALK[1]))
    assert isinstance(tokenise(maker, lucky), MaskError)


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n  {%- if true %}", "{#- words -#}\n", "text\n"])
def test_a_template_is_read_again_as_it_is(start: str) -> None:
    jinja = start + CHATML + ("{%- endif %}" if "if" in start else "")
    text, dates = proved(jinja)
    assert text.endswith("<|im_start|>assistant\nyes<|im_end|>\n")
    assert dates == {}


@pytest.mark.parametrize(
    ("asks", "dates"),
    [
        ("Today is {{ strftime_now('%d %b %Y') }}\n", {"%d %b %Y": "28 Nov 2026"}),
        ("{{ strftime_now('%H:%M:%S') }}", {"%H:%M:%S": "09:12:31"}),
        ("{% if strftime_now('%H') | int < 12 %}Good morning{% else %}Good evening{% endif %}", {"%H": "09"}),
        ("{% set day = strftime_now('%d') %}", {}),
        ("{% if tools %}{{ strftime_now('%Y') }}{% endif %}", {}),
    ],
)
def test_a_date_in_the_prompt_is_that_of_the_run(asks: str, dates: dict[str, str]) -> None:
    text, written = proved(asks + CHATML)
    assert written == dates
    assert all(told in text or told == "09" for told in dates.values())


def test_a_date_that_is_written_with_tools_alone_is_found_there() -> None:
    maker = encoder("{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + QWEN25, QWEN_TOKENS)
    with clock.held(DAY):
        for row in (ROW, Example(messages=TALK, tools=(TOOL,))):
            assert isinstance(tokenise(maker, row), Tokenised)
    assert maker.dates == {"%Y": "2026"}


def test_a_date_before_the_assistants_words_is_in_the_prompt_and_one_within_them_is_refused() -> None:
    day = "{{ strftime_now('%d %b') }}"
    header = CHATML.replace("<|im_start|>{{ message['role'] }}\n", "<|im_start|>{{ message['role'] }} " + day + "\n")
    header = header.replace("<|im_start|>assistant\n", "<|im_start|>assistant " + day + "\n")
    assert proved(header)[1] == {"%d %b": "28 Nov"}
    said = CHATML.replace(WORDS, SAID.replace("MORE", day))
    assert "writes the date or time into the assistant's turns" in refused(said)
    assert "writes the date or time into the assistant's turns" in refused(said, PAIR)
    unlearned = Example(messages=(*TALK, *TALK), learned=(False, False, False, False))
    assert proved(said, unlearned)[0].count("28 Nov yes") == 2


def test_a_template_that_ends_turns_by_the_day_is_refused() -> None:
    ending = "{% if strftime_now('%Y') == '2026' %}<|im_end|>{% else %}<|endoftext|>{% endif %}"
    assert "writes the date or time into" in refused(CHATML.replace("<|im_end|>", ending))


def test_without_a_clock_of_a_run_rows_are_written_as_transformers_writes_them() -> None:
    maker = encoder("{{ strftime_now('%Y') }}" + CHATML)
    row = tokenise(maker, ROW)
    assert isinstance(row, Tokenised)
    assert row.text.startswith(clock.current().strftime("%Y"))
    assert maker.dates == {}


def test_the_last_form_is_looked_at_and_no_more_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, calls = encoder(CHATML), []
    write: Any = maker.tokenizer.apply_chat_template
    monkeypatch.setattr(
        maker.tokenizer,
        "apply_chat_template",
        lambda turns, **given: calls.append(given["chat_template"]) or write(turns, **given),
    )
    for _ in range(3):
        tokenise(maker, ROW)
    assert [call for call in calls if call] == ["{##}\n" + CHATML]
