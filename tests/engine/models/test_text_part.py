"""The text part of a vision model: PEFT alone loads its adapter onto the whole model, and we load it onto the part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PromptTuningConfig

from mlflow_ft.engine.adapters import files, fitting
from mlflow_ft.engine.models import loading, text_part
from mlflow_ft.errors import ModelError
from tests.engine.foreign import PREFIX, base_model, made, renamed, says
from tests.reports import small_models

WHOLE = "Qwen3_5ForConditionalGeneration"
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3.5 with its part for pictures, which transformers loads as its text part."""
    return small_models.make("qwen3_5_pictures", tmp_path_factory.mktemp("small") / "pictures")


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 4, both parts of which have layers of the same names."""
    text = small_models.TEXT | {"intermediate_size_mlp": 128, "num_local_experts": 2, "num_experts_per_tok": 1}
    text = text | {"pad_token_id": 0, "eos_token_id": 0}
    vision = {
        "vision_output_dim": 64,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "pixel_shuffle_ratio": 0.5,
    }
    tokens = {"boi_token_index": 500, "eoi_token_index": 501, "image_token_index": 502}
    config = transformers.Llama4Config(text_config=text, vision_config=small_models.VISION | vision, **tokens)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small") / "llama4"
    transformers.Llama4ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_what_is_loaded_of_a_model(pictures: Path, llama4: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert text_part.of(tiny_model) is None
    parts = text_part.of(pictures)
    assert parts == text_part.Parts(whole=WHOLE, loaded="Qwen3_5ForCausalLM", reads=("pictures",))
    assert parts.text_alone
    assert "does not read pictures" in parts.said("mine", adapter=True)
    assert WHOLE not in parts.said("mine", adapter=False)
    gemma = text_part.of(small_models.make("gemma3", tmp_path / "gemma3"))
    assert gemma is not None
    assert not gemma.text_alone
    assert "is not trained" in gemma.said("mine", adapter=True)
    parts_of_llama = text_part.of(llama4)
    assert parts_of_llama is not None
    assert parts_of_llama.text_alone


def lora(**settings: Any) -> LoraConfig:
    usual = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return LoraConfig(**(usual | settings))


CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "dora and the head": lambda: lora(use_dora=True, modules_to_save=["lm_head"]),
    "tokens": lambda: lora(trainable_token_indices=[3, 4]),
    "a layer": lambda: lora(layers_to_transform=[1], target_modules=["down_proj"]),
    "patterns": lambda: lora(alpha_pattern={LAYER: 64, "q_proj": 2}, rank_pattern={LAYER: 2}),
    "whole names": lambda: lora(target_modules=[LAYER], alpha_pattern={LAYER: 64}),
    "ia3": lambda: IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
}


def check(base: Path, folder: Path, whole: str, wanted: torch.Tensor) -> None:
    beginnings = text_part.rename_for_whole(folder, base)
    assert beginnings is not None
    names = files.tensors(folder)
    assert any(name.startswith(f"{PREFIX}{beginnings[0]}") for name in names)
    with loading.quiet_peft():
        by_peft = PeftModel.from_pretrained(base_model(base, whole), folder)
        assert torch.equal(says(by_peft), wanted)
        assert torch.equal(says(fitting.put_on(base_model(base), folder)), wanted)
        mapping = {f"^{beginnings[0]}": beginnings[1]}
        logged = PeftModel.from_pretrained(base_model(base), folder, key_mapping=mapping)
        assert torch.equal(says(logged), wanted), "as the logged model loads it"
    assert (says(base_model(base)) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_is_the_same_on_the_whole_model(pictures: Path, tmp_path: Path, kind: str) -> None:
    wanted = made(pictures, tmp_path / "own", config=CONFIGS[kind]())
    check(pictures, tmp_path / "own", WHOLE, wanted)


@pytest.mark.parametrize("kind", ["lora", "dora and the head", "patterns", "ia3"])
def test_layers_of_the_picture_part_with_the_same_names_are_left_alone(llama4: Path, tmp_path: Path, kind: str) -> None:
    layer = "model.layers.0.feed_forward.shared_expert.down_proj"
    config = lora(alpha_pattern={layer: 64}, rank_pattern={layer: 2}) if kind == "patterns" else CONFIGS[kind]()
    wanted = made(llama4, tmp_path / "own", config=config)
    check(llama4, tmp_path / "own", "Llama4ForConditionalGeneration", wanted)


@pytest.mark.parametrize(
    "config",
    [
        lambda: PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        lambda: AdaLoraConfig(target_modules=["down_proj"], init_r=2, total_step=10, task_type="CAUSAL_LM"),
    ],
    ids=["prompt", "adalora"],
)
def test_what_cannot_have_the_names_of_the_whole_is_left_as_it_is(pictures: Path, tmp_path: Path, config: Any) -> None:
    made(pictures, tmp_path / "own", config=config())
    file = tmp_path / "own" / files.CONFIG
    settings = json.loads(file.read_text())
    ranks = {f"{LAYER}.lora_E": [True, False]} if settings["peft_type"] == "ADALORA" else None
    file.write_text(json.dumps(settings | {"rank_pattern": ranks}))
    before = [path.read_bytes() for path in sorted((tmp_path / "own").iterdir())]
    assert text_part.rename_for_whole(tmp_path / "own", pictures) is None
    assert [path.read_bytes() for path in sorted((tmp_path / "own").iterdir())] == before


@pytest.mark.parametrize(
    "target",
    [
        ["q_proj", "down_proj"],
        [f"model.language_model.layers.{number}.mlp.up_proj" for number in range(4)],
        r"model\.language_model\.layers\.\d+\.mlp\.(up|down)_proj",
    ],
    ids=str,
)
def test_an_adapter_of_the_whole_fits_the_text_part(pictures: Path, tmp_path: Path, target: Any) -> None:
    wanted = made(pictures, tmp_path / "own", kind=WHOLE, config=lora(target_modules=target))
    said: list[str] = []
    with loading.quiet_peft():
        wrapped = fitting.put_on(base_model(pictures), tmp_path / "own", say=said.append)
    assert torch.equal(says(wrapped), wanted)
    assert said == [
        "the adapter's weights have different names from the base's; all match with `language_model` removed"
    ]


def test_one_that_changes_the_picture_part_does_not(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "own", kind=WHOLE, config=lora(target_modules=["q_proj", "qkv"]))
    with (
        pytest.raises(ModelError, match=r"2 of its 4 weights match nothing in it \(.*visual") as caught,
        loading.quiet_peft(),
    ):
        fitting.put_on(base_model(pictures), tmp_path / "own")
    assert "for pictures or sound" in caught.value.hint


def test_an_adapter_of_the_text_part_fits_the_whole(pictures: Path, tmp_path: Path) -> None:
    wanted = made(pictures, tmp_path / "own", config=lora())
    with loading.quiet_peft():
        wrapped = fitting.put_on(base_model(pictures, WHOLE), tmp_path / "own")
    assert torch.equal(says(wrapped), wanted)
    other = renamed(
        tmp_path / "own", tmp_path / "v4", lambda name: name.replace(".model.layers", ".language_model.model.layers")
    )
    with loading.quiet_peft():
        assert torch.equal(says(fitting.put_on(base_model(pictures, WHOLE), other)), wanted)
