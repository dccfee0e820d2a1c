"""Gemma 2 and 3, Phi 3 and 4, Zephyr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import AddedToken

from tests.engine.templates.chatml import CHATML_TOKENS
from tests.engine.templates.script import Family, Message, Script, Tools

FAMILIES: dict[str, Family] = {}

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
