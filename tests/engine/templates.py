"""Chat templates as the well-known families render, written anew for the tests, and by hand what each of them writes.

Of every family there are two descriptions that know nothing of each other: `jinja`, which the code under test renders,
and `write`, plain Python that says which text is whose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import AddedToken

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None


@dataclass
class Script:
    """A text, piece by piece, each with the turn that says it; None: nobody learns it."""

    parts: list[tuple[str, int | None]] = field(default_factory=list)

    def read(self, *texts: str) -> Script:
        self.parts += [(text, None) for text in texts]
        return self

    def say(self, turn: int, *texts: str) -> Script:
        self.parts += [(text, turn) for text in texts]
        return self

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    def speeches(self) -> dict[int, tuple[int, int]]:
        """Of every turn that is said, from where to where."""
        found: dict[int, tuple[int, int]] = {}
        place = 0
        for text, turn in self.parts:
            if turn is not None:
                found[turn] = (found.get(turn, (place, 0))[0], place + len(text))
            place += len(text)
        return found


Oracle = Callable[[Sequence[Message], Tools], Script]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template, its tokens, and by hand what it writes."""

    jinja: str
    write: Oracle
    tokens: tuple[str | AddedToken, ...]
    """Those that are added to the vocabulary."""
    eos: str
    bos: str | None = None
    pad: str = "<pad>"
    kind: str = "bytes"
    """The tokenizer that such models have; see `tests.engine.tokens`."""
    system: str = "turn"
    """How a system prompt is written: a `turn`, `joined` with the user's words, or `no`."""
    tools: str = "no"
    """Which it writes by itself: `no`, `calls` alone, or `all`."""
    parallel: bool = True
    """Whether one turn may call several tools."""
    beside: bool = True
    """Whether words may stand beside a call."""
    way: str = "prefix differences"
    """How the assistant's turns are found where there is only one."""


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def functions(message: Message) -> list[Mapping[str, Any]]:
    return [call["function"] for call in message.get("tool_calls", ())]


def without_thought(content: str) -> str:
    return content.rpartition("</think>")[2]


FAMILIES: dict[str, Family] = {}


# --- ChatML and its heirs

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(messages: Sequence[Message], tools: Tools, system: str = "") -> Script:
    script = Script()
    if system and messages[0]["role"] != "system":
        script.read(f"<|im_start|>system\n{system}<|im_end|>\n")
    for turn, message in enumerate(messages):
        script.read(f"<|im_start|>{message['role']}\n")
        if message["role"] == "assistant":
            script.say(turn, message["content"], "<|im_end|>").read("\n")
        else:
            script.read(message["content"], "<|im_end|>\n")
    return script


FAMILIES["chatml"] = Family(jinja=CHATML, write=chatml, tokens=CHATML_TOKENS, eos="<|im_end|>")
FAMILIES["chatml pad is eos"] = replace(FAMILIES["chatml"], pad="<|im_end|>")
FAMILIES["chatml markers"] = replace(
    FAMILIES["chatml"],
    jinja=(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}"
        "<|im_end|>{% endif %}\n\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    way="generation markers",
)
FAMILIES["chatml markers, end outside"] = replace(
    FAMILIES["chatml"],
    jinja=(
        "{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\n' }}"
        "{%- if turn.role == 'assistant' %}{% generation %}{{ turn.content }}{% endgeneration %}"
        "{%- else %}{{ turn.content }}{% endif %}{{ '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
    ),
    way="generation markers",
)

SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
FAMILIES["smollm2"] = replace(
    FAMILIES["chatml"],
    jinja=(
        "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
        f"{{{{ '<|im_start|>system\n{SMOLLM}<|im_end|>\n' }}}}{{% endif %}}"
        "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    write=lambda messages, tools: chatml(messages, tools, SMOLLM),
)

# --- Qwen: tools as Hermes has them

QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
QWEN_HOW = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN_TOKENS = (
    *CHATML_TOKENS,
    *(
        AddedToken(text, special=False, normalized=False)
        for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")
    ),
)
QWEN_SYSTEM = """
{%- set given = messages[0].content if messages[0].role == 'system' else DEFAULT %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (given + '\n\n' if given else '') + HEAD }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- HOW + '<|im_end|>\n' }}
{%- elif given %}
    {{- '<|im_start|>system\n' + given + '<|im_end|>\n' }}
{%- endif %}"""
QWEN_CALLS = """
    {%- for call in turn.tool_calls %}
        {%- set call = call.function or call %}
        {{- START + '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
        {{- call.arguments if call.arguments is string else call.arguments | tojson }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}"""
QWEN_RESULT = """
    {%- elif turn.role == 'tool' %}
        {%- if not loop.previtem or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + turn.content + '\n</tool_response>' }}
        {%- if not loop.nextitem or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- endif %}"""


def quoted(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


def qwen_system(default: str) -> str:
    return QWEN_SYSTEM.replace("DEFAULT", quoted(default)).replace("HEAD", quoted(QWEN_TOOLS)).replace(
        "HOW", quoted(QWEN_HOW)
    )  # fmt: skip


QWEN25 = (
    qwen_system(QWEN)
    + """
{%- for turn in messages %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
    {%- elif turn.role == 'assistant' and not turn.tool_calls %}
        {{- '<|im_start|>assistant\n' + turn.content + '<|im_end|>\n' }}
    {%- elif turn.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if turn.content %}{{- '\n' + turn.content }}{% endif %}"""
    + QWEN_CALLS.replace("START", "'\n'")
    + "{{- '<|im_end|>\n' }}"
    + QWEN_RESULT
    + """
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
)


def qwen_before(messages: Sequence[Message], tools: Tools, default: str) -> Script:
    system = messages[0]["content"] if messages[0]["role"] == "system" else default
    if tools:
        listed = "".join(f"\n{as_json(tool)}" for tool in tools)
        system = (f"{system}\n\n" if system else "") + QWEN_TOOLS + listed + QWEN_HOW
    return Script().read(f"<|im_start|>system\n{system}<|im_end|>\n") if system else Script()


def hermes(message: Message) -> list[str]:
    """A turn's words, if any, and its calls."""
    words = [message["content"]] if message.get("content") else []
    calls = [
        f'<tool_call>\n{{"name": "{one["name"]}", "arguments": {as_json(one["arguments"])}}}\n</tool_call>'
        for one in functions(message)
    ]
    return words + calls


def qwen_result(messages: Sequence[Message], turn: int, script: Script) -> None:
    first = messages[turn - 1]["role"] != "tool"
    last = turn + 1 == len(messages) or messages[turn + 1]["role"] != "tool"
    script.read("<|im_start|>user" * first, f"\n<tool_response>\n{messages[turn]['content']}\n</tool_response>")
    script.read("<|im_end|>\n" * last)


def qwen25(messages: Sequence[Message], tools: Tools) -> Script:
    script = qwen_before(messages, tools, QWEN)
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            script.read(f"<|im_start|>user\n{message['content']}<|im_end|>\n")
        elif message["role"] == "tool":
            qwen_result(messages, turn, script)
        elif message["role"] == "assistant":
            script.read("<|im_start|>assistant\n").say(turn, "\n".join(hermes(message)), "<|im_end|>").read("\n")
    return script


FAMILIES["qwen2.5"] = Family(
    jinja=QWEN25, write=qwen25, tokens=QWEN_TOKENS, eos="<|im_end|>", kind="bytes, own split", tools="all"
)

QWEN3 = (
    qwen_system("")
    + """
{%- set asked = namespace(last=messages | length - 1, open=true) %}
{%- for turn in messages[::-1] %}
    {%- if asked.open and turn.role == 'user' and turn.content is string
            and not (turn.content.startswith('<tool_response>') and turn.content.endswith('</tool_response>')) %}
        {%- set asked.open = false %}
        {%- set asked.last = messages | length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set words = turn.content if turn.content is string else '' %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\n' + words + '<|im_end|>\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if turn.reasoning_content is string %}
            {%- set thought = turn.reasoning_content %}
        {%- elif '</think>' in words %}
            {%- set thought = words.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set words = words.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > asked.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + words.lstrip('\n') }}
        {%- else %}
            {{- words }}
        {%- endif %}"""
    + QWEN_CALLS.replace("START", "('\n' if words or not loop.first else '')")
    + "{{- '<|im_end|>\n' }}"
    + QWEN_RESULT
    + """
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
)


def qwen3(messages: Sequence[Message], tools: Tools) -> Script:
    script = qwen_before(messages, tools, "")
    asked = max(turn for turn, message in enumerate(messages) if message["role"] == "user")
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            script.read(f"<|im_start|>user\n{message['content']}<|im_end|>\n")
        elif message["role"] == "tool":
            qwen_result(messages, turn, script)
        elif message["role"] == "assistant":
            words, thought = message.get("content") or "", message.get("reasoning_content") or ""
            if "</think>" in words and "reasoning_content" not in message:
                thought = words.split("</think>")[0].rpartition("<think>")[2].strip("\n")
                words = without_thought(words).lstrip("\n")
            script.read("<|im_start|>assistant\n")
            if turn > asked and (thought or turn == len(messages) - 1):
                words = words.lstrip("\n")
                script.say(turn, "<think>\n", thought.strip("\n"), "\n</think>\n\n")
                calls = "\n".join(hermes({**message, "content": ""}))
                joint = "\n" if calls and (message.get("content") or "") else ""
                script.say(turn, words, joint, calls)
            else:
                script.say(turn, "\n".join(hermes({**message, "content": words})))
            script.say(turn, "<|im_end|>").read("\n")
    return script


FAMILIES["qwen3"] = Family(
    jinja=QWEN3, write=qwen3, tokens=QWEN_TOKENS, eos="<|im_end|>", kind="bytes, own split", tools="all"
)

# --- Llama

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

# --- Mistral

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
            asked = message == last  # by what it says: where a question is asked twice, both are the last
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
"""Mistral-7B-Instruct-v0.3, Nemo: the system prompt stands in a prompt, never where an answer follows."""

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

# --- Gemma

GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
GEMMA2 = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for turn in messages %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}
    {{- turn.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
GEMMA3 = """{{ bos_token }}
{%- set given = '' %}
{%- if messages[0].role == 'system' %}
    {%- set given = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for turn in messages %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}
    {{- (given if loop.first else '') + turn.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""


def gemma(messages: Sequence[Message], tools: Tools) -> Script:
    script, given = Script().read("<bos>"), ""
    for turn, message in enumerate(messages):
        if message["role"] == "system":
            given = f"{message['content']}\n\n"
        elif message["role"] == "user":
            script.read(f"<start_of_turn>user\n{given}{message['content'].strip()}<end_of_turn>\n")
            given = ""
        else:
            script.read("<start_of_turn>model\n").say(turn, message["content"].strip(), "<end_of_turn>").read("\n")
    return script


FAMILIES["gemma-2"] = Family(
    jinja=GEMMA2, write=gemma, tokens=GEMMA_TOKENS, bos="<bos>", eos="<eos>", kind="pieces, none", system="no"
)
FAMILIES["gemma-3"] = replace(FAMILIES["gemma-2"], jinja=GEMMA3, system="joined")

# --- Phi, Zephyr

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
PHI3_ADDED = tuple(AddedToken(text, special=True, rstrip=True, normalized=False) for text in ("<|end|>", *ROLE_TOKENS))
PHI3 = """{% for turn in messages %}{% if turn.role in ('system', 'user', 'assistant') %}
{{- '<|' ~ turn.role ~ '|>\n' ~ turn.content ~ '<|end|>\n' -}}
{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""


def role_turns(messages: Sequence[Message], end: str, final: str = "", gap: str = "\n") -> Script:
    script = Script()
    for turn, message in enumerate(messages):
        script.read(f"<|{message['role']}|>{gap}")
        if message["role"] == "assistant":
            script.say(turn, message["content"], end).read("\n")
        else:
            script.read(message["content"], end, "\n")
    return script.read(final)


FAMILIES["phi-3"] = Family(
    jinja=PHI3,
    write=lambda messages, tools: role_turns(messages, "<|end|>", "<|endoftext|>"),
    tokens=(
        "<s>",
        "<|endoftext|>",
        *(AddedToken(text, rstrip=True, normalized=False) for text in ("<|end|>", *ROLE_TOKENS)),
    ),
    bos="<s>",
    eos="<|endoftext|>",
    kind="pieces, always",
)
PHI3_EARLY = PHI3.replace("'system', ", "")
"""The first Phi-3 passes over a system prompt in silence."""
PHI4_ADDED = tuple(
    AddedToken(text, special=True, lstrip=True, rstrip=True, normalized=False)
    for text in (*CHATML_TOKENS, "<|im_sep|>")
)
PHI4 = """{% for turn in messages %}{{ '<|im_start|>' ~ turn.role ~ '<|im_sep|>' ~ turn.content ~ '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""


def phi4(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script()
    for turn, message in enumerate(messages):
        script.read(f"<|im_start|>{message['role']}<|im_sep|>")
        if message["role"] == "assistant":
            script.say(turn, message["content"], "<|im_end|>")
        else:
            script.read(message["content"], "<|im_end|>")
    return script


FAMILIES["phi-4"] = Family(
    jinja=PHI4,
    write=phi4,
    tokens=(
        AddedToken("<|endoftext|>", lstrip=True, rstrip=True, normalized=False),
        *(
            AddedToken(text, lstrip=True, rstrip=True, normalized=False)
            for text in ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
        ),
    ),
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    kind="bytes, own split",
)
FAMILIES["zephyr"] = Family(
    jinja="""{% for turn in messages %}{{ '<|' ~ turn.role ~ '|>\n' ~ turn.content ~ eos_token ~ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}""",
    write=lambda messages, tools: role_turns(messages, "</s>"),
    tokens=("<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    pad="</s>",
    kind="pieces, always",
)

# --- DeepSeek

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
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{one['name']}\n```json\n{as_json(one['arguments'])}\n```"
                "<｜tool▁call▁end｜>"
                for one in functions(message)
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

# --- Vicuna, Command R

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

COMMAND_R = """{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + messages[0].content + '<|END_OF_TURN_TOKEN|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for turn in messages %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<|START_OF_TURN_TOKEN|><|' + ('USER' if turn.role == 'user' else 'CHATBOT') + '_TOKEN|>' }}
    {{- turn.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""


def command_r(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<BOS_TOKEN>")
    for turn, message in enumerate(messages):
        said = message["content"] if message["role"] == "system" else message["content"].strip()
        if message["role"] == "assistant":
            script.read("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>").say(turn, said, "<|END_OF_TURN_TOKEN|>")
        else:
            script.read(f"<|START_OF_TURN_TOKEN|><|{message['role'].upper()}_TOKEN|>{said}<|END_OF_TURN_TOKEN|>")
    return script


FAMILIES["command-r"] = Family(
    jinja=COMMAND_R,
    write=command_r,
    tokens=(
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        *(AddedToken(f"<|{name}_TOKEN|>", special=False, normalized=False) for name in ("SYSTEM", "USER", "CHATBOT")),
    ),
    bos="<BOS_TOKEN>",
    eos="<|END_OF_TURN_TOKEN|>",
    kind="bytes, own split",
)


COMMAND_R7B = """{{ bos_token }}{% for turn in messages %}
{{- '<|START_OF_TURN_TOKEN|><|' ~ {'system': 'SYSTEM', 'user': 'USER'}.get(turn.role, 'CHATBOT') ~ '_TOKEN|>' }}
{{- '<|START_RESPONSE|>' ~ turn.content ~ '<|END_RESPONSE|>' if turn.role == 'assistant' else turn.content }}
{{- '<|END_OF_TURN_TOKEN|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"""


def command_r7b(messages: Sequence[Message], tools: Tools) -> Script:
    script = Script().read("<BOS_TOKEN>")
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            script.read("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>")
            script.say(turn, message["content"], "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")
        else:
            script.read(f"<|START_OF_TURN_TOKEN|><|{message['role'].upper()}_TOKEN|>{message['content']}")
            script.read("<|END_OF_TURN_TOKEN|>")
    return script


FAMILIES["command-r7b"] = replace(
    FAMILIES["command-r"],
    jinja=COMMAND_R7B,
    write=command_r7b,
    tokens=(*FAMILIES["command-r"].tokens, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)

# --- gpt-oss: channels

GPT_OSS = """{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n' }}
{{- 'Knowledge cutoff: 2024-06\nCurrent date: ' + strftime_now('%Y') + '\n\nReasoning: medium\n\n' }}
{{- '# Valid channels: analysis, commentary, final. Channel must be included for every message.' }}
{{- '<|end|>' }}
{%- if messages[0].role == 'system' %}
    {{- '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- '<|start|>user<|message|>' + turn.content + '<|end|>' }}
    {%- elif turn.role == 'assistant' %}
        {%- set final = loop.last and not add_generation_prompt %}
        {%- if final and turn.thinking is defined %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + turn.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + turn.content }}
        {{- '<|return|>' if final else '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""
GPT_OSS_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")


def gpt_oss(messages: Sequence[Message], tools: Tools, year: str = "") -> Script:
    script = Script().read(
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
        f"2024-06\nCurrent date: {year}\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. "
        "Channel must be included for every message.<|end|>"
    )
    for turn, message in enumerate(messages):
        if message["role"] == "system":
            script.read(f"<|start|>developer<|message|># Instructions\n\n{message['content']}\n\n<|end|>")
        elif message["role"] == "user":
            script.read(f"<|start|>user<|message|>{message['content']}<|end|>")
        else:
            script.read("<|start|>assistant")
            last = turn == len(messages) - 1
            if last and (message.get("thinking") or message.get("reasoning_content")):
                thought = message.get("thinking") or message["reasoning_content"]
                script.say(turn, f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant")
            script.say(turn, f"<|channel|>final<|message|>{message['content']}", "<|return|>" if last else "<|end|>")
    return script


# --- no end of a turn: the next role ends it

GLM4 = """[gMASK]<sop>{% for turn in messages %}{{ '<|' ~ turn.role ~ '|>\n' ~ turn.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
GLM4_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|observation|>", *ROLE_TOKENS)
