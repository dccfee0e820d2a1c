"""Command R, gpt-oss with its channels, GLM without ends of turns, and headers in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import AddedToken

from tests.engine.templates.gemma import ROLE_TOKENS
from tests.engine.templates.script import Family, Message, Oracle, Script, Tools

FAMILIES: dict[str, Family] = {}

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


def headed(question: str, answer: str) -> Oracle:
    def write(messages: Sequence[Message], tools: Tools) -> Script:
        script = Script()
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                script.read(answer).say(turn, message["content"], "</s>").read("\n")
            else:
                script.read(question, message["content"], "\n")
        return script

    return write


HEADED = (
    "{% for turn in messages %}{{ raise_exception('no system') if turn.role == 'system' else '' }}"
    "{{ 'ANSWER' ~ turn.content ~ '</s>' if turn.role == 'assistant' else "
    "'QUESTION' ~ turn.content }}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'ANSWER' }}{% endif %}"
)
for name, (question, answer) in {"headed": ("Question: ", "Answer: "), "headed in Chinese": ("问：", "答：")}.items():
    FAMILIES[name] = Family(
        jinja=HEADED.replace("QUESTION", question).replace("ANSWER", answer),
        write=headed(question, answer),
        tokens=("</s>",),
        eos="</s>",
        kind="bytes, own split, trimmed",
        system="no",
    )

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


GLM4 = """[gMASK]<sop>{% for turn in messages %}{{ '<|' ~ turn.role ~ '|>\n' ~ turn.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
GLM4_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|observation|>", *ROLE_TOKENS)
