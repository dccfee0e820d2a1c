"""DeepSeek V3 and R1: thoughts are dropped, and arguments are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import AddedToken

from tests.engine.templates.script import Family, Message, Script, Tools, as_json, functions, without_thought

FAMILIES: dict[str, Family] = {}

DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    *(
        AddedToken(f"<｜{name}｜>", special=False, normalized=False)
        for name in (
            "User",
            "Assistant",
            *(f"tool▁{what}▁{edge}" for what in ("calls", "call", "outputs", "output") for edge in ("begin", "end")),
            "tool▁sep",
        )
    ),
    AddedToken("<think>", special=False, normalized=False),
    AddedToken("</think>", special=False, normalized=False),
)
DEEPSEEK = """{{- bos_token }}
{%- for turn in messages if turn.role == 'system' %}{{- turn.content }}{% endfor %}
{%- set seen = namespace(result=false) %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {%- set seen.result = false %}
        {{- '<｜User｜>' + turn.content }}
    {%- elif turn.role == 'assistant' %}
        {{- '<｜tool▁outputs▁end｜>' if seen.result else '<｜Assistant｜>' }}
        {%- set seen.result = false %}
        {{- turn.content.split('</think>')[-1] }}
        {%- for call in turn.tool_calls or [] %}
            {{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
            {{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\n```json\n' }}
            {{- '' + call.function.arguments + '\n```<｜tool▁call▁end｜>' }}
            {{- '<｜tool▁calls▁end｜>' if loop.last else '' }}
        {%- endfor %}
        {{- '<｜end▁of▁sentence｜>' }}
    {%- elif turn.role == 'tool' %}
        {{- '\n' if seen.result else '<｜tool▁outputs▁begin｜>' }}
        {{- '<｜tool▁output▁begin｜>' + turn.content + '<｜tool▁output▁end｜>' }}
        {%- set seen.result = true %}
    {%- endif %}
{%- endfor %}
{%- if seen.result %}{{- '<｜tool▁outputs▁end｜>' }}{% elif add_generation_prompt %}{{- PROMPT }}{% endif %}"""


def deepseek(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<｜begin▁of▁sentence｜>")
    script.read(*(message["content"] for message in messages if message["role"] == "system"))
    for turn, message in enumerate(messages):
        result = turn and messages[turn - 1]["role"] == "tool"
        if message["role"] == "user":
            script.read("<｜User｜>", message["content"])
        elif message["role"] == "tool":
            script.read("\n" if result else "<｜tool▁outputs▁begin｜>")
            script.read("<｜tool▁output▁begin｜>", message["content"], "<｜tool▁output▁end｜>")
        elif message["role"] == "assistant":
            script.read("<｜tool▁outputs▁end｜>" if result else "<｜Assistant｜>")
            script.say(turn, without_thought(message.get("content") or ""))
            calls = [
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{function['name']}\n```json\n{as_json(function['arguments'])}\n```"
                "<｜tool▁call▁end｜>"
                for function in functions(message)
            ]
            if calls:
                script.say(turn, "<｜tool▁calls▁begin｜>", "\n".join(calls), "<｜tool▁calls▁end｜>")
            script.say(turn, "<｜end▁of▁sentence｜>")
    return script


FAMILIES["deepseek-v3"] = Family(
    jinja=DEEPSEEK.replace("PROMPT", "'<｜Assistant｜>'"),
    write=deepseek,
    tokens=DEEPSEEK_TOKENS,
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
    pad="<｜end▁of▁sentence｜>",
    kind="bytes, own split, trimmed",
    tools="calls",
)
FAMILIES["deepseek-r1"] = replace(
    FAMILIES["deepseek-v3"], jinja=DEEPSEEK.replace("PROMPT", r"'<｜Assistant｜><think>\n'"), way="substitution"
)
