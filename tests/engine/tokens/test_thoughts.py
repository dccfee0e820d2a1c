"""Thoughts that a template omits are counted, wherever a row keeps them and whatever the template."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft.engine.tokens import thoughts
from mlflow_ft.engine.tokens.masking import Encoder, MaskError, Tokenised
from mlflow_ft.rows import Example
from tests.engine.templates import FAMILIES, talk
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML, CHATML_TOKENS
from tests.engine.tokens.test_render import A_TOKEN

FOLDER = files("trl") / "chat_templates"
CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": "red"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def of(jinja: str, added: Any = None) -> Encoder:
    if added:
        return Encoder(tokens.make(jinja, added, eos="<|im_end|>"), max_length=9999)
    made = tokens.make(jinja, sorted({"<s>", "</s>", *A_TOKEN.findall(jinja)}), bos="<s>", eos="</s>")
    return Encoder(made, max_length=9999)


def family(name: str) -> Encoder:
    script = FAMILIES[name]
    made = tokens.make(script.jinja, script.tokens, eos=script.eos, bos=script.bos, kind=script.kind)
    return Encoder(made, max_length=9999)


def tokenise(maker: Encoder, messages: Sequence[Any], **more: Any) -> Tokenised | MaskError:
    [result] = maker.tokenise([Example(messages=tuple(messages), **more)])
    return result if isinstance(result, MaskError) else result[0]


def lost(maker: Encoder, messages: Sequence[Any], **more: Any) -> tuple[int, ...]:
    row = tokenise(maker, messages, **more)
    assert not isinstance(row, MaskError), f"{row}: {row.text}"
    return row.unwritten


def thinking(number: int, form: str) -> dict[str, Any]:
    """A turn of the assistant that thinks, in one of the forms in which data sets and servers have it."""
    words, thought = f"word {number}", f"muse {number}"
    within = {
        "<think>": f"<think>\n{thought}\n</think>\n\n{words}",
        "</think> alone": f"{thought}\n</think>\n\n{words}",
        "[THINK]": f"[THINK]{thought}[/THINK]{words}",
        "<thinking>": f"<thinking>{thought}</thinking>{words}",
        "channel": f"<|channel>thought\n{thought}\n<channel|>{words}",
    }
    aside = {
        "reasoning_details": [{"type": "reasoning.text", "text": thought}],
        "reasoning_content list": [thought],
        "thinking object": {"thinking": thought},
    }
    if form in within:
        return {"role": "assistant", "content": within[form]}
    return {"role": "assistant", "content": words, form.partition(" ")[0]: aside.get(form, thought)}


FORMS = (
    *("<think>", "</think> alone", "[THINK]", "<thinking>", "channel"),
    *("reasoning_content", "thinking", "reasoning", "thought", "rationale", "chain_of_thought"),
    *("reasoning_details", "reasoning_content list", "thinking object"),
)
TEMPLATES = (
    *("qwen3", "qwen3_5_think", "qwen3_5_nothink", "gemma4", "gemma4_v2", "glm4moe", "gptoss", "deepseekv3"),
    *("nemotron_3_nano", "lfm2_2_5", "llama3_2", "phi3", "muse_glimmer", "qwen2_5"),
)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("form", FORMS)
def test_a_thought_is_in_the_text_or_it_is_counted(name: str, form: str) -> None:
    """The rule, for templates as they were released: nothing that a learned turn thinks is lost in silence."""
    file = FOLDER / f"{name}.jinja"
    if not file.is_file():
        pytest.skip("this release of TRL has no such file")
    maker = of(file.read_text(encoding="utf-8"))
    called = {**thinking(1, form), "tool_calls": [CALL]}
    result = {"role": "tool", "content": "lit", "tool_call_id": "call00000", "name": "f"}
    ask = [{"role": "user", "content": f"ask {number}"} for number in range(2)]
    last_alone = (False, False, False, True) if name in ("gptoss", "muse_glimmer") else None
    talks: list[tuple[list[dict[str, Any]], Any]] = [
        ([ask[0], thinking(1, form), ask[1], thinking(2, form)], None),
        ([ask[0], thinking(1, form), ask[1], {"role": "assistant", "content": "word 2"}], None),
        ([ask[0], called, result, thinking(2, form), ask[1], thinking(3, form)], (TOOL,)),
    ]
    for messages, tools in talks:
        row = tokenise(maker, messages, tools=tools, learned=last_alone if len(messages) == 4 else None)
        if isinstance(row, MaskError):
            continue
        learned = [turn for turn in (1, 3, 5) if turn < len(messages) and messages[turn]["role"] == "assistant"]
        learned = [turn for turn in learned if last_alone is None or turn == len(messages) - 1]
        thought = {turn: next((n for n in "123" if f"muse {n}" in str(messages[turn])), "") for turn in learned}
        missing = [turn for turn, number in thought.items() if number and f"muse {number}" not in row.text]
        assert row.unwritten == tuple(missing), row.text


def test_qwen_leaves_out_the_thoughts_of_earlier_turns_of_calls_too() -> None:
    maker = family("qwen3")
    ask, result = {"role": "user", "content": "a"}, {"role": "tool", "content": "lit", "tool_call_id": "call00000"}
    called = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]}
    answer = {"role": "assistant", "content": "<think>\nso\n</think>\n\nb"}
    assert lost(maker, [ask, called, result, answer], tools=(TOOL,)) == ()
    assert lost(maker, [ask, called, result, answer, ask, answer], tools=(TOOL,)) == (1, 3)
    assert lost(maker, [ask, answer, ask, answer, ask, {**answer, "content": "c"}]) == (1, 3)
    assert lost(family("chatml"), [ask, answer, ask, answer]) == (), "ChatML keeps them"


def test_what_is_not_learned_is_not_lost() -> None:
    messages = [
        *({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}),
        *({"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "thought": "hm"}),
    ]
    maker = family("qwen3")
    assert lost(maker, messages) == (1, 3)
    assert lost(maker, messages, learned=(False, False, False, True)) == (3,)
    assert lost(maker, messages, learned=(False, True, False, False)) == (1,)


def test_in_both_answers_of_a_preference() -> None:
    call = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]}
    ask, result = {"role": "user", "content": "a"}, {"role": "tool", "content": "lit", "tool_call_id": "call00000"}
    again = [ask, {"role": "assistant", "content": "b"}]
    row = Example(messages=(ask,), chosen=(call, result, *again), rejected=tuple(again[1:]), tools=(TOOL,))
    [parts] = family("qwen3").tokenise([row])
    assert not isinstance(parts, MaskError)
    assert [part.unwritten for part in parts] == [(1,), ()]


@settings(max_examples=40)
@given(thoughts=st.lists(st.none() | talk.text.filter(lambda said: "think>" not in said), min_size=1, max_size=9))
def test_as_many_as_the_description_by_hand_leaves_out(thoughts: list[str | None]) -> None:
    messages: list[dict[str, Any]] = []
    for number, thought in enumerate(thoughts):
        more = {} if thought is None else {"reasoning_content": thought}
        messages += [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b {number}", **more}]
    script = FAMILIES["qwen3"].write(messages, None)
    row = tokenise(family("qwen3"), messages)
    assert isinstance(row, Tokenised)
    assert row.text == script.text
    assert row.unwritten == tuple(turn for turn in range(1, len(messages) - 1, 2) if len(messages[turn]) == 3)


# --- templates of other makes


MAGISTRAL = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('[/THINK]')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}",
)
BY_NAME = "{% set closing = '</reason>' %}" + CHATML.replace(
    "{{ message['content'] }}",
    "{% if message.role == 'assistant' and closing in message.content %}"
    "{% if loop.last %}<r>{{ message.content.split(closing)[0].split('<reason>')[-1] }}</r>{% endif %}"
    "{{ message.content.split(closing)[-1] }}{% else %}{{ message.content }}{% endif %}",
)


@pytest.mark.parametrize(
    ("jinja", "said"), [(MAGISTRAL, "[THINK]muse[/THINK]word"), (BY_NAME, "<reason>muse</reason>word")]
)
def test_a_template_with_tags_of_its_own(jinja: str, said: str) -> None:
    maker = of(jinja, CHATML_TOKENS)
    messages = [{"role": role, "content": said if role == "assistant" else "a"} for role in ("user", "assistant") * 2]
    assert lost(maker, messages) == (1,)
    row = tokenise(maker, messages)
    assert isinstance(row, Tokenised)
    learned = "".join(text for text, label in zip(row.pieces, row.labels, strict=True) if label != -100)
    assert learned.count("muse") == 1
    assert learned.startswith("word<|im_end|>")


def test_a_template_that_reads_a_key_of_its_own_loses_nothing() -> None:
    jinja = CHATML.replace("{{ message['content'] }}", "{{ message.rationale }}{{ message['content'] }}")
    turn = {"role": "assistant", "content": "b", "rationale": "hm "}
    assert lost(of(jinja, CHATML_TOKENS), [{"role": "user", "content": "a"}, turn]) == ()
    assert lost(family("chatml"), [{"role": "user", "content": "a"}, turn]) == (1,)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "id",
            "name",
            "finish_reason",
            "reasoning_effort",
            "thinking_budget",
            "reasoning_tokens",
            "thought_signature",
        ),
        *("think_time", "reasoning_id", "rethinking", "model", "weight"),
    ],
)
def test_what_says_something_about_a_turn_is_no_thought(key: str) -> None:
    turn = {"role": "assistant", "content": "b", key: "high"}
    assert not thoughts.are_lost(turn, "b", CHATML)
    assert not thoughts.are_lost({**turn, "thought": " ", "reasoning_details": [], "cot": None}, "b", CHATML)
