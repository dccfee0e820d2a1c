"""Mistral, with versions 1, 3 and 7 of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tests.engine.templates.script import Family, Message, Script, Tools, as_json

FAMILIES: dict[str, Family] = {}

MISTRAL_TOKENS = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
MISTRAL1 = """{{ bos_token }}{% for turn in messages %}
{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{{- '[INST] ' ~ turn.content ~ ' [/INST]' if turn.role == 'user' else ' ' ~ turn.content ~ eos_token -}}
{% endfor %}"""


def mistral1(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<s>")
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            script.read(f"[INST] {message['content']} [/INST]")
        else:
            script.say(turn, f" {message['content']}</s>")
    return script


FAMILIES["mistral-v1"] = Family(
    jinja=MISTRAL1, write=mistral1, tokens=("<s>", "</s>"), bos="<s>", eos="</s>", kind="pieces, always", system="no"
)

MISTRAL3 = """{%- if messages[0].role == 'system' %}
    {%- set given = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set questions = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {%- if tools is not none and turn == questions[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (given + '\n\n' if WHEN and given is defined else '') + turn.content + '[/INST]' }}
    {%- elif turn.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in turn.tool_calls %}
            {%- set written = call.function | tojson %}
            {{- written[:-1] }}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' + (']' + eos_token if loop.last else ', ') }}
        {%- endfor %}
    {%- elif turn.role == 'assistant' %}
        {{- ' ' + turn.content + eos_token }}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + turn.content | string + ', "call_id": "' + turn.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}"""


def mistral_calls(message: Message) -> str:
    return as_json([{**call["function"], "id": call["id"]} for call in message["tool_calls"]])


def mistral3(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<s>")
    last = [message for message in messages if message["role"] == "user"][-1]
    given = f"{messages[0]['content']}\n\n" if messages[0]["role"] == "system" else ""
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            asked = message == last  # by content: if a question is asked twice, both are the last
            offer = f"[AVAILABLE_TOOLS] {as_json(tools)}[/AVAILABLE_TOOLS]" if tools and asked else ""
            script.read(offer, "[INST] ", given if asked else "", message["content"], "[/INST]")
        elif message.get("tool_calls"):
            script.say(turn, f"[TOOL_CALLS] {mistral_calls(message)}</s>")
        elif message["role"] == "assistant":
            script.say(turn, f" {message['content']}</s>")
        elif message["role"] == "tool":
            script.read(f'[TOOL_RESULTS] {{"content": {message["content"]}, "call_id": "{message["tool_call_id"]}"}}')
            script.read("[/TOOL_RESULTS]")
    return script


FAMILIES["mistral-v3"] = Family(
    jinja=MISTRAL3.replace("WHEN", "turn == questions[-1]"),
    write=mistral3,
    tokens=MISTRAL_TOKENS,
    bos="<s>",
    eos="</s>",
    kind="pieces, always",
    system="joined",
    tools="all",
    beside=False,
)
MISTRAL3_AS_RELEASED = MISTRAL3.replace("WHEN", "loop.last")
"""Mistral-7B-Instruct-v0.3, Nemo: the system prompt is in a prompt, never when an answer follows."""

MISTRAL7 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- '[INST]' + turn.content + '[/INST]' }}
    {%- elif turn.role == 'assistant' %}
        {%- if turn.content %}{{- turn.content }}{% endif %}
        {%- if turn.tool_calls %}
            {{- '[TOOL_CALLS][' }}
            {%- for call in turn.tool_calls %}
                {{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
                {{- ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}
            {%- endfor %}
            {{- ']' }}
        {%- endif %}
        {{- eos_token }}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + turn.tool_call_id + '[TOOL_CONTENT]' + turn.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool roles are supported!') }}
    {%- endif %}
{%- endfor %}"""


def mistral7(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<s>")
    offer = f"[AVAILABLE_TOOLS]{as_json(tools)}[/AVAILABLE_TOOLS]" if tools else ""
    for turn, message in enumerate(messages):
        if message["role"] == "system":
            script.read(f"[SYSTEM_PROMPT]{message['content']}[/SYSTEM_PROMPT]")
            continue
        script.read(offer)
        offer = ""
        if message["role"] == "user":
            script.read(f"[INST]{message['content']}[/INST]")
        elif message["role"] == "tool":
            script.read(f"[TOOL_RESULTS]{message['tool_call_id']}[TOOL_CONTENT]{message['content']}[/TOOL_RESULTS]")
        else:
            calls = f"[TOOL_CALLS]{mistral_calls(message)}" if message.get("tool_calls") else ""
            script.say(turn, message.get("content") or "", calls, "</s>")
    return script


FAMILIES["mistral-v7"] = Family(
    jinja=MISTRAL7,
    write=mistral7,
    tokens=MISTRAL_TOKENS,
    bos="<s>",
    eos="</s>",
    kind="bytes, own split",
    tools="all",
)
