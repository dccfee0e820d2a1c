"""Tools, in templates with and without tool support: what is written, and what is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mlflow_ft.engine.tokens import tool_text
from mlflow_ft.engine.tokens.masking import Encoder, Tokenised
from mlflow_ft.engine.tokens.render import MaskError, apply, prompt_text
from mlflow_ft.rows import Example
from tests.engine.templates import FAMILIES, talk
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML, CHATML_TOKENS
from tests.engine.templates.script import Script

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
NATIVE = [name for name, family in FAMILIES.items() if family.tools == "all"]
STRANGERS = [name for name, family in FAMILIES.items() if family.tools != "all"]


def call(name: str = "f", number: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": f"call{number:05d}", "function": {"name": name, "arguments": arguments}}


@cache
def encoder(name: str) -> Encoder:
    family = FAMILIES[name]
    fresh = tokens.of_family(family)  # not the one that others share: its template is extended
    return Encoder(fresh, max_length=10_000)


def proved(maker: Encoder, messages: Sequence[Any], tools: Any = None, **more: Any) -> Tokenised:
    [tokenised] = maker.tokenise([Example(messages=tuple(messages), tools=tools, **more)])
    assert not isinstance(tokenised, MaskError), f"{tokenised}: {tokenised.text}"
    return tokenised[0]


def refused(maker: Encoder, messages: Sequence[Any], tools: Any = None) -> str:
    [result] = maker.tokenise([Example(messages=tuple(messages), tools=tools)])
    assert isinstance(result, MaskError), result
    return str(result)


def as_text(messages: Sequence[Any], tools: Any, *, system: bool, calls: bool) -> tuple[list[Any], list[int]]:
    """By hand: the turns as a template that knows no tools is given them, and of each turn its number in the row."""
    how = " Call one with a JSON object between <tool_call> and </tool_call>." if calls else ""
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools or ())
    offer = f"You may call the functions below.{how}\n<tools>\n{listed}</tools>" if tools else ""
    turns: list[Any] = []
    numbers: list[int] = []
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        if calls and message["role"] == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if messages[number - 1]["role"] == "tool":
                turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n{content}"}
                continue
            turns.append({"role": "user", "content": content})
        elif calls and message.get("tool_calls"):
            made = (call["function"] for call in message["tool_calls"])
            written = (
                f'<tool_call>\n{{"name": {json.dumps(call["name"])}, '
                f'"arguments": {json.dumps(call["arguments"], ensure_ascii=False)}}}\n</tool_call>'
                for call in made
            )
            turns.append({"role": "assistant", "content": "\n".join([*([content] if content else []), *written])})
        else:
            turns.append(message)
        numbers.append(number)
    if offer and system and turns[0]["role"] == "system":
        turns[0] = {"role": "system", "content": f"{turns[0]['content']}\n\n{offer}"}
    elif offer and system:
        turns.insert(0, {"role": "system", "content": offer})
        numbers.insert(0, -1)
    elif offer:
        first = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
        turns[first] = {"role": "user", "content": f"{offer}\n\n{turns[first]['content']}"}
    return turns, numbers


def by_hand(name: str, messages: Sequence[Any], tools: Any) -> Script:
    family = FAMILIES[name]
    if family.tools == "all" or not (tools or any("tool_calls" in turn for turn in messages)):
        return family.write(messages, tools)
    turns, numbers = as_text(messages, tools, system=family.system != "no", calls=family.tools == "no")
    script = family.write(turns, None)
    return Script([(text, None if turn is None else numbers[turn]) for text, turn in script.parts])


def spoken(messages: Iterable[Any]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_calls_are_learned_and_offers_and_results_are_not(name: str, data: st.DataObject) -> None:
    messages = data.draw(talk.tool_talk(name))
    tools = data.draw(st.none() | talk.offers)
    said = spoken(messages)
    learned = data.draw(st.just(said) | st.lists(st.sampled_from(said), unique=True))
    flags = tuple(turn in learned for turn in range(len(messages)))

    row = proved(encoder(name), messages, tools, learned=flags)

    script = by_hand(name, messages, tools)
    assert row.text == script.text
    assert "".join(row.pieces) == script.text
    assert row.labels == tokens.labels(row, script, learned)


# --- the prelude


@pytest.mark.parametrize("name", STRANGERS)
def test_a_template_is_taught_once_and_only_what_it_lacks(name: str) -> None:
    tokenizer = tokens.of_family(FAMILIES[name])
    before = tokenizer.chat_template
    lacks = tool_text.lacks(tokenizer)
    assert lacks == {"offer"} if FAMILIES[name].tools == "calls" else lacks >= {"offer", "call"}
    assert not tool_text.taught(tokenizer)
    assert tool_text.teach_tools(tokenizer) == set()
    once = tokenizer.chat_template
    assert tool_text.taught(tokenizer)
    assert once.endswith(before)
    assert ("tool_calls" in once.removesuffix(before)) == (FAMILIES[name].tools == "no")
    assert tool_text.teach_tools(tokenizer) == set()
    assert tokenizer.chat_template == once


@pytest.mark.parametrize("name", NATIVE)
def test_a_template_that_knows_tools_stays_as_it_is(name: str) -> None:
    tokenizer = tokens.of_family(FAMILIES[name])
    proved(
        Encoder(tokenizer, max_length=999),
        [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(x="y")]}],
        (TOOL,),
    )
    assert tokenizer.chat_template == FAMILIES[name].jinja
    assert not tool_text.taught(tokenizer)


@pytest.mark.parametrize("name", STRANGERS)
@settings(max_examples=10)
@given(
    data=st.data(),
    opening=st.sampled_from(["", "\n", "  ", "\n  ", "text ", "  {# c #}\n", "  {%- if 1 %} x{% endif %}\n"]),
)
def test_a_row_without_tools_is_written_as_before(name: str, data: st.DataObject, opening: str) -> None:
    messages = data.draw(talk.conversations(name))
    plain, taught = tokens.of_family(FAMILIES[name]), tokens.of_family(FAMILIES[name])
    plain.chat_template = opening + plain.chat_template
    taught.chat_template = plain.chat_template
    assert tool_text.teach_tools(taught) == set()
    for tools in (None, []):
        assert apply(taught, messages, tools) == apply(plain, messages, tools)
        assert prompt_text(taught, messages[:-1], tools) == prompt_text(plain, messages[:-1], tools)


def test_what_was_learned_before_the_first_tool_is_what_the_saved_template_writes() -> None:
    plain = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "green"}]
    called = [{"role": "user", "content": "red"}, {"role": "assistant", "tool_calls": [call(x=1)]}]
    answered = [*called, {"role": "tool", "content": "lit", "tool_call_id": "call00000"}]
    answered.append({"role": "assistant", "content": "done"})
    rows = [
        Example(messages=tuple(messages), tools=tools)
        for messages, tools in ((plain, None), (called, None), (answered, None), (plain, (TOOL,)), (answered, (TOOL,)))
    ]
    for name in FAMILIES:
        maker = encoder(name)
        first = [maker.encode([row])[0] for row in rows]
        again = Encoder(maker.tokenizer, max_length=10_000).encode(rows)
        assert first == again
        assert not any(isinstance(part, MaskError) for part in again)


@pytest.mark.parametrize("name", STRANGERS)
def test_the_prelude_is_saved_with_the_tokenizer(name: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call(x="ü")]}]
    maker = encoder(name)
    row = proved(maker, messages, (TOOL,))
    maker.tokenizer.save_pretrained(tmp_path)
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tool_text.taught(loaded)
    other = Encoder(loaded, max_length=10_000)
    again = proved(other, messages, (TOOL,))
    assert (again.text, again.ids, again.labels) == (row.text, row.ids, row.labels)
    assert loaded.chat_template == maker.tokenizer.chat_template


def served(template: str, messages: Sequence[Any], tools: Any, prompt: bool, **special: Any) -> str:  # noqa: FBT001  # as templates name it
    """How a server without transformers renders turns, in the sandbox that all of them use."""
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    sandbox.globals["raise_exception"] = lambda text: pytest.fail(text)
    return sandbox.from_string(template).render(messages=messages, tools=tools, add_generation_prompt=prompt, **special)


@pytest.mark.parametrize("name", [name for name in STRANGERS if "markers" not in name])
@settings(max_examples=10)
@given(data=st.data())
def test_the_prelude_runs_in_a_servers_sandbox(name: str, data: st.DataObject) -> None:
    tokenizer = encoder(name).tokenizer
    tool_text.teach_tools(tokenizer)
    messages, tools = data.draw(talk.tool_talk(name)), data.draw(st.none() | talk.offers)
    if FAMILIES[name].tools == "calls":  # by itself it takes arguments as text, and words with every call
        messages = [as_given_to_deepseek(message) for message in messages]
    text = served(tokenizer.chat_template, messages, tools, False, **tokenizer.special_tokens_map)
    assert text == apply(tokenizer, messages, tools)


def as_given_to_deepseek(message: Any) -> Any:
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {"content": "", **message, "tool_calls": calls}


def test_arguments_that_come_as_text_are_written_as_they_are() -> None:
    maker = encoder("chatml")
    asked = {"role": "user", "content": "a"}
    given = '{"city": "Zürich", "n": 1.50}'
    [as_text_, as_object] = [
        [asked, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
        for arguments in (given, json.loads(given))
    ]
    assert f'<tool_call>\n{{"name": "f", "arguments": {given}}}\n</tool_call><|im_end|>' in proved(maker, as_text_).text
    assert '"arguments": {"city": "Zürich", "n": 1.5}' in proved(maker, as_object).text
    for nothing in ("", None, {}):
        turns = [asked, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nothing}}]}]
        assert '"arguments": {}}' in apply(maker.tokenizer, turns, None)


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_are_escaped_as_transformers_does(name: str) -> None:
    strange = {"größe": 'ü "quoted" \\ \n <b> & 你好 😀', "n": [1, None, True, {"é": 0.5}]}
    row = proved(
        encoder(name),
        [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call("f", 0, **strange)]}],
        (TOOL,),
    )
    assert json.dumps(strange, ensure_ascii=False) in row.text


# --- calls as a template's own


PYTHON = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message.content }}{% for one in message.tool_calls %}<call>{{ one.function.name }} {{ one.function.arguments }}"
    "{% endfor %}{% for tool in (tools or []) %}{{ tool }}{% endfor %}",
)


def own(jinja: str) -> Encoder:
    return Encoder(tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>"), max_length=999)


def test_arguments_are_never_written_as_python_has_them() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(x="y'", of=None)]}]
    row = proved(own(PYTHON), turns)
    assert '<call>f {"x": "y\'", "of": null}<|im_end|>' in row.text
    quoting = [{"role": "user", "content": "what is {'x': 1} ?"}, {"role": "assistant", "tool_calls": [call(x=1)]}]
    assert '"parameters": {"x": 1}}' in proved(encoder("llama-3.1"), quoting).text


def test_calls_whose_arguments_a_template_drops_are_taught() -> None:
    maker = own(PYTHON.replace(" {{ one.function.arguments }}", ""))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(x="y")]}]
    assert '{"name": "f", "arguments": {"x": "y"}}' in proved(maker, turns).text


HALF = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message.content }}{% for one in (message.tool_calls or [])[:1] %}{{ one.function | tojson }}{% endfor %}"
    "{{ tools | tojson if tools else '' }}",
)


STRANGE = {"x": 'ü "q" \\ \n\t é', "of": ["'", {"b": "</x>"}]}
TEXT_ALONE = (
    "{% if one.function.arguments is not string %}{{ raise_exception('no') }}{% endif %}{{ one.function | tojson }}"
)
AS_LFM = r"""{{ one.function.name }}(
{%- for name, value in one.function.arguments.items() -%}{{ name }}={%- if value is string -%}
'{{ value | replace("\\", "\\\\") | replace("'", "\\'") | replace("\n", "\\n") | replace("\t", "\\t") }}'
{%- else -%}{{ value | tojson }}{%- endif -%},{%- endfor -%})"""


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("{{ message.content + '' }}{{ one.function | tojson }}", json.dumps(STRANGE, ensure_ascii=False)),
        ("{{ one.function.arguments | tojson(ensure_ascii=true) }}{{ one.function.name }}", json.dumps(STRANGE)),
        (TEXT_ALONE, json.dumps(json.dumps(STRANGE, ensure_ascii=False), ensure_ascii=False)),
        (AS_LFM, "f(x='ü \"q\" \\\\ \\n\\t é',of="),
    ],
)
def test_arguments_may_be_quoted_in_several_ways(written: str, text: str) -> None:
    jinja = CHATML.replace(
        "{{ message['content'] }}",
        "{% if not message.tool_calls %}{{ message.content }}{% endif %}{{ tools | tojson if tools else '' }}"
        "{% for one in message.tool_calls or [] %}" + written + "{% endfor %}",
    )
    maker = own(jinja)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(**STRANGE)]}]
    row = proved(maker, turns)
    assert not tool_text.taught(maker.tokenizer)
    assert text in row.text
    begin = row.text.index("assistant\n") + len("assistant\n")
    script = Script().read(row.text[:begin]).say(1, row.text[begin:].rstrip("\n")).read("\n")
    assert row.labels == tokens.labels(row, script, [1])


def test_a_template_that_drops_arguments_that_are_no_text_is_refused() -> None:
    only_text = (
        "{% for name, value in one.function.arguments.items() if value is string %}{{ name }}{{ value }}{% endfor %}"
    )
    maker = own(HALF.replace("{{ one.function | tojson }}", "{{ one.function.name }}" + only_text))
    asked = {"role": "user", "content": "a"}
    proved(maker, [asked, {"role": "assistant", "tool_calls": [call(x="y")]}])
    reason = refused(maker, [asked, {"role": "assistant", "tool_calls": [call(count=1)]}])
    assert reason == "the chat template does not write the tool calls of turn 2"


def test_a_template_that_drops_a_call_is_refused() -> None:
    maker = own(HALF)
    asked = {"role": "user", "content": "a"}
    row = proved(maker, [asked, {"role": "assistant", "tool_calls": [call(x="y")]}])
    assert not tool_text.taught(maker.tokenizer)
    assert '{"name": "f", "arguments": {"x": "y"}}<|im_end|>' in row.text
    for calls in ([call(x="y"), call(x="z")], [call(x=1), call(y=2)], [call("f"), call("g")]):
        reason = refused(maker, [asked, {"role": "assistant", "tool_calls": calls}])
        assert reason == "the chat template does not write the tool calls of turn 2"


def test_words_that_a_template_drops_beside_a_call_are_refused() -> None:
    asked = {"role": "user", "content": "a"}
    for name in ("llama-3.1", "mistral-v3"):
        reason = refused(encoder(name), [asked, {"role": "assistant", "content": "see", "tool_calls": [call(x="y")]}])
        assert "next to the tool calls of turn 2" in reason


def test_a_result_that_a_template_drops_is_taught_or_refused() -> None:
    jinja = PYTHON.replace("{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}")
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call(x="y")]},
        {"role": "tool", "content": "lit"},
        {"role": "assistant", "content": "done"},
    ]
    assert "<tool_response>\nlit\n</tool_response>" in proved(own(jinja), turns).text
    maker = own(jinja)
    maker.tokenizer.chat_template = {"default": jinja}  # such templates are not extended
    assert "turn 3, the tool's" in refused(maker, turns)


def test_tools_that_a_template_cannot_be_taught_are_refused() -> None:
    no = "{% if messages | length > 2 or tools %}{{ raise_exception('no') }}{% endif %}" + CHATML.replace(
        "{{ message['content'] }}", "{{ message.content if '<tools>' not in message.content else 'no' }}"
    )
    maker = own(no)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert refused(maker, plain, (TOOL,)) == "the chat template does not write the offered tools"
    assert maker.tokenizer.chat_template == no
    assert proved(maker, plain).text.endswith("b<|im_end|>\n")


def test_a_call_may_end_in_a_token_of_its_own() -> None:
    jinja = (
        "{{ tools }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}<|call|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    )
    maker = Encoder(
        tokens.make(jinja, ("<|start|>", "<|message|>", "<|end|>", "<|call|>"), eos="<|end|>"), max_length=999
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(x="<|call|>")]}]
    answer = [{"role": "tool", "content": "lit"}, {"role": "assistant", "content": "done"}]
    row = proved(maker, [*turns, *answer])
    said = '{"name": "f", "arguments": {"x": "<|call|>"}}<|call|>'
    script = Script().read("None<|start|>user<|message|>a<|end|><|start|>assistant<|message|>").say(1, said)
    script.read("<|start|>tool<|message|>lit<|end|><|start|>assistant<|message|>").say(3, "done<|end|>")
    assert row.text == script.text
    assert row.labels == tokens.labels(row, script, [1, 3])


def test_a_call_that_nothing_ends_is_refused() -> None:
    jinja = HALF.replace("<|im_end|>", "{% if not message.tool_calls %}<|im_end|>{% endif %}")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call(x="y")]}]
    assert "writes no end-of-turn token" in refused(own(jinja), turns)
    tagged = jinja.replace("{{ one.function | tojson }}", "<call>{{ one.function | tojson }}</call>")
    closing = [AddedToken(text, special=False) for text in ("<call>", "</call>")]  # a token, but no end of a turn
    tokenizer = tokens.make(tagged, [*CHATML_TOKENS, *closing], eos="<|im_end|>")
    assert "writes no end-of-turn token" in refused(Encoder(tokenizer, max_length=999), turns)
