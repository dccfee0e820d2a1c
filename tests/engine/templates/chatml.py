"""ChatML and SmolLM2; with generation markers, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.engine.templates.script import Family, Message, Script, Tools

FAMILIES: dict[str, Family] = {}

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
