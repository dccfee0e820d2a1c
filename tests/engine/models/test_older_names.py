"""What programs built on transformers 4 read in config.json, beside what transformers 5 writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
)

from mlflow_ft.engine.merging import quantised
from mlflow_ft.engine.models import older_names

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SIZE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
CASES = {
    "default": (
        LlamaConfig(**SIZE, rope_theta=500_000.0, dtype="bfloat16"),
        {"rope_theta": 500_000.0, "torch_dtype": "bfloat16"},
    ),
    "scaled": (
        LlamaConfig(**SIZE, rope_theta=1e6, rope_scaling={"rope_type": "llama3", **LLAMA3}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    "by kind of layer": (
        Gemma3TextConfig(**SIZE, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "part of each head": (Glm4Config(**SIZE), {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "names of its own": (GPTNeoXConfig(rotary_pct=0.5), {"rotary_emb_base": 1e4, "rotary_pct": 0.5}),
    "only three fields": (
        Phi3Config(**SIZE, rope_scaling={"type": "longrope", **LONG}, max_position_embeddings=8192),
        {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "would be read otherwise": (Gemma4TextConfig(), {}),
    "without": (GPT2Config(), {}),
}


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("case", CASES)
def test_older_names_stand_beside_the_new_ones_and_change_nothing_for_transformers(case: str, tmp_path: Path) -> None:
    config, expected = CASES[case]
    config.save_pretrained(tmp_path)
    before = written(tmp_path)
    older_names.add(config, tmp_path)
    after = written(tmp_path)
    assert {name: value for name, value in after.items() if name not in before} == expected
    assert after | before == after
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again.get("rope_parameters") == before.get("rope_parameters")


def test_the_text_part_of_a_model_that_sees_pictures_has_them_too(tmp_path: Path) -> None:
    config = Gemma3Config(dtype="bfloat16")
    config.save_pretrained(tmp_path)
    older_names.add(config, tmp_path)
    after = written(tmp_path)
    assert after["text_config"]["rope_theta"] == 1e6
    assert after["torch_dtype"] == "bfloat16"
    assert "rope_theta" not in after["vision_config"]


def test_a_model_in_8_bits_has_them(tiny_model: Path, tmp_path: Path) -> None:
    quantised.write(tiny_model, tmp_path / "int8", quantize="int8")
    after = written(tmp_path / "int8")
    assert after["rope_theta"] == after["rope_parameters"]["rope_theta"]


def test_a_tokenizer_has_the_class_and_the_list_that_transformers_4_reads(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    older_names.in_tokenizer(tmp_path)
    after = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert after["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in after
    assert after["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer)
    assert again.all_special_ids == tokenizer.all_special_ids
    text = "<|im_start|>user\nturn on the lamp<|im_end|>"
    assert again(text).input_ids == tokenizer(text).input_ids
