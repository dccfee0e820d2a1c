"""What vLLM cannot take is refused before it is started, with the form that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow_ft_vllm.engine import suitable

from mlflow_ft import BaseModel, ConfigError, ModelError, ServedModel


@pytest.fixture
def adapter(small: Path, make_lora: Callable[..., Path], tmp_path: Path) -> Callable[..., ServedModel]:
    def make(name: str = "one", *, note: dict[str, Any] | None = None, uri: str = "", **settings: Any) -> ServedModel:
        folder = make_lora(tmp_path / name, **settings)
        base = BaseModel(name="small", path=small, name_or_path=str(small), revision="sha256:1", origin="a folder")
        return ServedModel(name=name, uri=uri or str(folder), folder=folder, base=base, note=note or {})

    return make


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes the biases of lora_B for incomplete weights
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed but the targeted layer")
@pytest.mark.parametrize(
    ("settings", "note", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, {}, "whole modules .modules_to_save: lm_head"),
        ({"trainable_token_indices": [5, 6]}, {}, "trained tokens"),
        ({"use_dora": True}, {}, "it is a DoRA"),
        ({"bias": "all"}, {}, "trained biases"),
        ({"lora_bias": True}, {}, "its LoRA has biases"),
        ({}, {"tokens": 600}, "adds tokens"),
        ({}, {"quantization": {"load_in_4bit": True}}, "in 4 bits"),
        ({"r": 1024}, {}, "its rank is 1024, and 512 is the largest"),
    ],
)
def test_an_adapter_is_refused_and_the_merged_form_named(
    adapter: Callable[..., ServedModel], settings: dict[str, Any], note: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        suitable.check(adapter(note=note, uri="models:/lamp-adapter/3", **settings))
    assert "mlflow-ft serve lamp@ALIAS --engine vllm" in str(refused.value)


def test_a_learned_prompt_is_refused(small: Path, tmp_path: Path, adapter: Callable[..., ServedModel]) -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import LlamaForCausalLM

    get_peft_model(
        LlamaForCausalLM.from_pretrained(small), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).save_pretrained(tmp_path / "prompt")
    model = ServedModel(name="p", uri="/p", folder=tmp_path / "prompt", base=adapter().base)
    with pytest.raises(ModelError, match=r"it is no LoRA \(prompt-tuning\)") as refused:
        suitable.check(model)
    assert "mlflow-ft merge --adapter /p" in str(refused.value)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 8}}])
def test_a_plain_lora_is_taken(adapter: Callable[..., ServedModel], settings: dict[str, Any]) -> None:
    suitable.check(adapter(**settings))


def test_reward_models_are_refused(adapter: Callable[..., ServedModel], small: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a reward model"):
        suitable.check(adapter(note={"task": "score"}))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    with pytest.raises(ModelError, match="is a reward model"):
        suitable.check(ServedModel(name="r", uri="/r", folder=tmp_path))
    suitable.check(ServedModel(name="s", uri="/s", folder=small))


def test_the_rank_limit_is_found_from_the_adapters(adapter: Callable[..., ServedModel]) -> None:
    four, wide = adapter("four"), adapter("wide", rank_pattern={"q_proj": 24})
    assert suitable.rank_limit([four], None) == 8
    assert suitable.rank_limit([four, wide], None) == 32
    assert suitable.rank_limit([four], 40) == 64, "room for those that follow"
    with pytest.raises(ConfigError, match="max_lora_rank is 16, but the adapter 'wide' has rank 24"):
        suitable.rank_limit([four, wide], 16)
