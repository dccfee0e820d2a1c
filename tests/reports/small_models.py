"""Small random models of the shapes that public reports are about, all with the tests' own tokenizer.

    small_models.make("qwen3_moe", folder)
    small_models.make("llama", folder, tie_word_embeddings=True)
    small_models.make("llama", folder, stored="nf4")

Every one has hidden size 64, at least 2 layers and 512 tokens; further options go to its config.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig

from mlflow_ft.testing import CHATML, make_tiny_tokenizer

TEXT: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
}
EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "bos_token_id")
LATENT: Mapping[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,  # the first layer has no experts
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
"""Attention through a latent of keys and values, as in DeepSeek, and shared experts besides the routed ones."""
LINEAR_ATTENTION: Mapping[str, Any] = {
    "num_hidden_layers": 4,  # the last of four attends to all positions, the others keep a state
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
VISION: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
KINDS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT),
    "mistral": ("MistralConfig", "MistralForCausalLM", TEXT | {"sliding_window": 5}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {key: TEXT[key] for key in TEXT if key != "head_dim"}),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {key: TEXT[key] for key in TEXT if key not in ("head_dim", "num_key_value_heads")},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {key: TEXT[key] for key in TEXT if key != "head_dim"}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", TEXT),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", TEXT | EXPERTS | {"num_experts": 4}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", TEXT | {"num_experts_per_tok": 2, "num_local_experts": 4}),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", TEXT | LINEAR_ATTENTION),
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        TEXT | LINEAR_ATTENTION | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 512, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "bos_token_id": None},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": None},
    ),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", TEXT),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", TEXT | EXPERTS | {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", TEXT | EXPERTS | {"num_experts": 4}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", TEXT | EXPERTS | LATENT),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM", TEXT | EXPERTS | {"num_local_experts": 4}),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM", TEXT | {"num_local_experts": 4, "intermediate_size_mlp": 128}),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        TEXT
        | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "minimax": (
        "MiniMaxConfig",
        "MiniMaxForCausalLM",
        TEXT | {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    ),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", TEXT | {"layer_types": ["conv", "full_attention"], "block_dim": 64}),
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", {name: TEXT[name] for name in SIZES} | {"attention_hidden_size": 64}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        {name: TEXT[name] for name in SIZES}
        | {"num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 64, "attention_window_size": 64},
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 512, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": None},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {name: TEXT[name] for name in (*SIZES, "num_attention_heads", "max_position_embeddings")}
        | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    ),
}
"""By name: the class of the config, that of the model, and what the config is given."""


TOKENS = 347
"""How many tokens the tests' own tokenizer has: a model with `vocab_size=TOKENS` has no embedding to spare."""
STORED: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}
"""How bitsandbytes can quantise the files of a model."""


def make(
    kind: str, folder: Path, *, seed: int = 0, chat_template: str | None = CHATML, stored: str = "", **more: Any
) -> Path:
    """Write a small model of random weights and its tokenizer to `folder`; `more` are values of its config.

    `stored` is a key of STORED: the files are then quantised.
    """
    tokenizer = make_tiny_tokenizer(chat_template=chat_template)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    _build(kind, ends, more).eval().save_pretrained(folder)
    if stored:
        _quantise(folder, BitsAndBytesConfig(**STORED[stored]))
    tokenizer.save_pretrained(folder)
    return folder


def _quantise(folder: Path, settings: BitsAndBytesConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns of a CPU
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, dtype=torch.float32
        )
        shutil.rmtree(folder)
        model.save_pretrained(folder)


def with_settings(base: Path, folder: Path, file: str = "config.json", **values: Any) -> Path:
    """A copy of a model with other values in one of its JSON files."""
    shutil.copytree(base, folder)
    place = folder / file
    settings = json.loads(place.read_text()) if place.is_file() else {}
    place.write_text(json.dumps(settings | values))
    return folder


def with_tokenizer(base: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a model whose tokenizer was changed: `change` is given it."""
    shutil.copytree(base, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def _build(kind: str, ends: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    if kind in PICTURES:
        return PICTURES[kind](ends, more)
    config, model, given = KINDS[kind]
    return getattr(transformers, model)(getattr(transformers, config)(**{**given, **ends, **more}))


def _gemma3(ends: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    config = transformers.Gemma3Config(
        text_config={**TEXT, **ends, **more},
        vision_config={**VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=500,
        eoi_token_index=501,
        image_token_id=502,
        **ends,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen3_5(ends: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(
        text_config={**TEXT, **LINEAR_ATTENTION, **ends, **more},
        vision_config={**vision, "patch_size": 14, "num_position_embeddings": 16},
        image_token_id=500,
        video_token_id=501,
        vision_start_token_id=502,
        vision_end_token_id=503,
        **ends,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


PICTURES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    "gemma3": _gemma3,
    "qwen3_5_pictures": _qwen3_5,
}
"""Models with a picture part; `more` are values of the text part's config."""
