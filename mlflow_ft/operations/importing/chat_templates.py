"""Chat templates that tools know by name: written out where tokenizers do not bring them, else the tokenizer's own."""

from __future__ import annotations

import difflib

from mlflow_ft.operations.importing.draft import Draft

TURNS = "{{ bos_token }}{% for message in messages %}"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPACA = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{% else %}{{ message['content'] + eos_token }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ 'A chat between a curious user and an artificial "
    "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' }}"
    "{% endif %}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ 'System: ' + message['content'] + eos_token + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + eos_token + '\nAssistant:' }}{% else %}"
    "{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
    "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WRITTEN = {"llamafactory": {"alpaca": ALPACA, "vicuna": VICUNA, "default": PLAIN, "chatml": CHATML}}
WRITTEN["axolotl"] = {"chatml": CHATML, "alpaca": ALPACA, "llama3": LLAMA3, "gemma": GEMMA, "phi_3": PHI3}
"""By tool and name, templates that are part of the configuration: base models have none of their own."""
UNENDED = {
    "empty": "its answers have no end of turn, so a model never learns to stop",
    "fewshot": "its answers have no end of turn, so a model never learns to stop",
}
OWN = {
    "llamafactory": [
        "bailing",
        "bailing_v2",
        "breeze",
        "chatglm3",
        "chatml_de",
        "cohere",
        "cpm4",
        "dbrx",
        "deepseek",
        "deepseek3",
        "deepseekr1",
        "hy3",
        "deepseekcoder",
        "dots_ocr",
        "ernie",
        "ernie_nothink",
        "ernie_vl",
        "exaone",
        "falcon",
        "falcon_h1",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4n",
        "glm4",
        "glm4_moe",
        "glm4v",
        "glm4_5v",
        "glm_ocr",
        "glm4_7",
        "glmz1",
        "gpt",
        "gpt_oss",
        "granite3",
        "granite3_vision",
        "granite4",
        "index",
        "hunyuan",
        "hunyuan_small",
        "intern2",
        "intern_vl",
        "intern_s1",
        "keye_vl",
        "kimi_vl",
        "lfm2",
        "lfm2_vl",
        "llama2",
        "llama2_zh",
        "llama3",
        "llama4",
        "mllama",
        "moonlight",
        "llava",
        "llava_next",
        "llava_next_llama3",
        "llava_next_mistral",
        "llava_next_qwen",
        "llava_next_yi",
        "llava_next_video",
        "llava_next_video_mistral",
        "llava_next_video_yi",
        "mimo",
        "mimo_v2",
        "mimo_vl",
        "minicpm_v",
        "minicpm_v_4_6",
        "minicpm_o",
        "minimax1",
        "minimax2",
        "ministral",
        "mistral",
        "mistral_small",
        "ministral3",
        "olmo",
        "openchat",
        "openchat-3.6",
        "opencoder",
        "paligemma",
        "paligemma_chat",
        "phi",
        "phi_small",
        "phi4",
        "phi4_mini",
        "pixtral",
        "qwen",
        "qwen3",
        "qwen3_nothink",
        "qwen2_audio",
        "qwen2_omni",
        "qwen3_omni",
        "qwen3_omni_nothink",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_nothink",
        "qwen3_5",
        "qwen3_5_nothink",
        "qwen3_6",
        "sailor",
        "seed_coder",
        "seed_oss",
        "smollm",
        "smollm2",
        "solar",
        "starchat",
        "telechat2",
        "video_llava",
        "xuanyuan",
        "yi",
        "yi_vl",
        "youtu",
        "youtu_vl",
        "yuan",
        "zephyr",
        "aeva",
        "intern",
        "atom",
        "baichuan",
        "baichuan2",
        "belle",
        "bluelm",
        "chatglm2",
        "codegeex2",
        "codegeex4",
        "cpm",
        "marco",
        "orion",
        "skywork_o1",
        "spark",
        "llama-pro",
        "aya",
        "gemma-2",
        "internlm",
        "internlm2",
        "qwen2",
        "qwen2_5",
        "nanbeige",
        "cohere2",
        "granite",
        "yayi",
    ],
    "axolotl": [
        "mistral_v1",
        "mistral_v2v3",
        "mistral_v3_tekken",
        "mistral_v7_tekken",
        "cohere",
        "llama3_2_vision",
        "llama4",
        "phi_35",
        "phi_4",
        "deepseek_v2",
        "deepseek_v3",
        "jamba",
        "qwen_25",
        "qwen3",
        "qwen3_5",
        "falcon_h1",
        "nemotron_h",
        "tokenizer_default",
        "exaone",
        "exaone4",
        "metharme",
        "pixtral",
        "llava",
        "qwen2_vl",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4_unified",
        "command_a",
        "command_a_tool_use",
        "command_a_rag",
        "aya",
        "inst",
        "smollm3",
    ],
}
FALLBACK = "tokenizer_default_fallback_"
"""With a name after it: that template where the tokenizer has none of its own."""
ABOUT_OWN = "the tokenizer's own template; if it has none, give data.chat_template"


def named(draft: Draft, key: str, *, stage: str = "sft") -> None:
    """A template by name: our `data.chat_template`, or the tokenizer's own."""
    name, tool = draft.value(key), draft.table.tool
    if stage == "pt":
        draft.skip(key, "texts are learned as they are")
    elif name is None:
        return
    elif str(name) in WRITTEN[tool]:
        draft.set("data.chat_template", WRITTEN[tool][str(name)], key, about=f"{name}, written out")
    elif str(name) in UNENDED:
        draft.refuse(key, UNENDED[str(name)])
    elif str(name) in OWN[tool] or str(name).startswith(FALLBACK):
        draft.tell(key, "approximated", note=ABOUT_OWN)
    else:
        near = difflib.get_close_matches(str(name), [*OWN[tool], *WRITTEN[tool]], n=1)
        hint = f"did you mean {near[0]}?" if near else "give data.chat_template"
        draft.refuse(key, f"no template {name} is known; {hint}")
