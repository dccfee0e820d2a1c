"""Qwen 2.5 and 3: a default system prompt, tools as in Hermes, thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken

from tests.engine.templates.chatml import CHATML_TOKENS
from tests.engine.templates.script import Family, Message, Script, Tools, as_json, functions, quoted, without_thought

FAMILIES: dict[str, Family] = {}

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
        f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {as_json(function["arguments"])}}}\n</tool_call>'
        for function in functions(message)
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
