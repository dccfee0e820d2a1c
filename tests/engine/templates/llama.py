"""Llama 2, 3 and 3.1; Vicuna, which is one of the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from tests.engine.templates.script import Family, Message, Script, Tools, as_json, functions, quoted

FAMILIES: dict[str, Family] = {}

LLAMA2 = """{% if messages[0].role == 'system' %}{% set given, turns = messages[0].content, messages[1:] %}
{% else %}{% set given, turns = none, messages %}{% endif %}
{% for turn in turns %}
{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set said = ('<<SYS>>\n' ~ given ~ '\n<</SYS>>\n\n' if given is not none and loop.first else '') ~ turn.content %}
{% if turn.role == 'user' %}
{{- bos_token ~ '[INST] ' ~ said.strip() ~ ' [/INST]' -}}
{% else %}
{{- ' ' ~ said.strip() ~ ' ' ~ eos_token -}}
{% endif %}
{% endfor %}"""


def llama2(messages: Sequence[Message], tools: Tools) -> Script:
    script, before = Script(), ""
    for turn, message in enumerate(messages):
        if message["role"] == "system":
            before = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            script.read(f"<s>[INST] {(before + message['content']).strip()} [/INST]")
            before = ""
        else:
            script.say(turn, f" {message['content'].strip()} </s>")
    return script


FAMILIES["llama-2"] = Family(
    jinja=LLAMA2, write=llama2, tokens=("<s>", "</s>"), bos="<s>", eos="</s>", kind="pieces, always", system="joined"
)

LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
LLAMA3 = (
    "{% for turn in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + turn['role'] + "
    "'<|end_header_id|>\n\n' + turn['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def llama3_turn(script: Script, turn: int, role: str, said: str) -> None:
    script.read(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
    if role == "assistant":
        script.say(turn, said, "<|eot_id|>")
    else:
        script.read(said, "<|eot_id|>")


def llama3(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<|begin_of_text|>")
    for turn, message in enumerate(messages):
        llama3_turn(script, turn, message["role"], message["content"].strip())
    return script


FAMILIES["llama-3"] = Family(
    jinja=LLAMA3,
    write=llama3,
    tokens=LLAMA3_TOKENS,
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    kind="bytes, own split, trimmed",
)

LLAMA31_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
)
LLAMA31 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set given = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set given = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + ('Environment: ipython\n' if tools is not none else '') }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + given + '<|eot_id|>' }}
{%- if tools is not none %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' + TOOLS }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + '\n\n' }}{%- endfor %}
    {{- messages[0].content | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for turn in messages %}
    {%- if 'tool_calls' in turn %}
        {%- if turn.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = turn.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif turn.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {{- turn.content | tojson if turn.content is iterable else turn.content }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' + turn.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""".replace(
    "TOOLS", quoted(LLAMA31_TOOLS)
)


def llama31(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<|begin_of_text|>")
    given = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    date = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    llama3_turn(script, 0, "system", ("Environment: ipython\n" if tools else "") + date + given)
    offer = (
        LLAMA31_TOOLS + "".join(json.dumps(tool, indent=4, ensure_ascii=False) + "\n\n" for tool in tools)
        if tools
        else ""
    )
    for turn, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "tool":
            llama3_turn(script, turn, "ipython", as_json(message["content"]))
        elif message.get("tool_calls"):
            [call] = functions(message)
            said = f'{{"name": "{call["name"]}", "parameters": {as_json(call["arguments"])}}}'
            llama3_turn(script, turn, "assistant", said)
        else:
            llama3_turn(script, turn, message["role"], offer + message["content"].strip())
            offer = ""
    return script


FAMILIES["llama-3.1"] = replace(
    FAMILIES["llama-3"], jinja=LLAMA31, write=llama31, tools="all", parallel=False, beside=False
)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA = """{%- if messages[0].role == 'system' %}
    {%- set given = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set given = SYSTEM %}
{%- endif %}
{{- bos_token + given }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- (' ' if loop.first else '') + 'USER: ' + turn.content | trim }}
    {%- else %}
        {{- ' ASSISTANT: ' + turn.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{% endif %}""".replace("SYSTEM", f'"{VICUNA_SYSTEM}"')


def vicuna(messages: Sequence[Message], tools: Tools) -> Script:
    script, gap = Script().read("<s>"), " "
    script.read(messages[0]["content"] if messages[0]["role"] == "system" else VICUNA_SYSTEM)
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            script.read(f"{gap}USER: {message['content'].strip()} ASSISTANT:")
            gap = ""
        elif message["role"] == "assistant":
            script.say(turn, f" {message['content'].strip()}</s>")
    return script


FAMILIES["vicuna"] = Family(
    jinja=VICUNA, write=vicuna, tokens=("<s>", "</s>"), bos="<s>", eos="</s>", kind="pieces, first"
)
