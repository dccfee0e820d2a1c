"""Which make a base's files are of, read from config.json and their headers, and what can be trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.schema import Config
from mlflow_ft.engine import own_quantization
from mlflow_ft.errors import ConfigError, ModelError

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = NF4 | {"bnb_4bit_use_double_quant": True}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4}
BESIDE = {"nf4": f"{WEIGHT}.quant_state.bitsandbytes__nf4", "int8": WEIGHT.replace("weight", "SCB")}
BESIDE |= {"fp8": f"{WEIGHT}_scale_inv", "gptq": WEIGHT.replace("weight", "qweight")}


def base(folder: Path, settings: dict[str, Any] | None, *names: str, part: str = "") -> Path:
    """A folder with a config.json and tensors of these names."""
    folder.mkdir(exist_ok=True)
    said: dict[str, Any] = {} if settings is None else {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps({part: said} if part else said))
    if names:
        save_file({name: torch.zeros(2) for name in names}, folder / "model.safetensors")
    return folder


def config(method: str, **settings: object) -> Config:
    return asked([method, *(f"--{key}={value}" for key, value in settings.items())], plugins.load({}))


@pytest.mark.parametrize(
    ("settings", "make", "held", "told"),
    [
        (NF4, "nf4", "nf4", "4 bits by bitsandbytes (nf4)"),
        (DOUBLE, "nf4", "nf4", "4 bits by bitsandbytes (nf4, double quantisation)"),
        (INT8, "int8", "int8", "8 bits by bitsandbytes (int8)"),
        (FP8, "fp8", None, "FP8"),
        (GPTQ, "gptq", None, "gptq, 4 bits"),
    ],
    ids=["nf4", "double", "int8", "fp8", "gptq"],
)
@pytest.mark.parametrize("part", ["", "text_config"])
def test_the_make(tmp_path: Path, part: str, settings: dict[str, Any], make: str, held: str | None, told: str) -> None:
    own = own_quantization.of(base(tmp_path, settings, WEIGHT, BESIDE[make], part=part))
    assert own is not None
    assert (own.make, own.held, own.told) == (make, held, told)


def test_a_base_that_is_not_quantised(tmp_path: Path) -> None:
    assert own_quantization.of(base(tmp_path / "without", None, WEIGHT)) is None
    unused = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}
    assert own_quantization.of(base(tmp_path / "off", unused, WEIGHT)) is None


def test_config_and_files_disagree(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not say so"):
        own_quantization.of(base(tmp_path / "packed", None, WEIGHT, BESIDE["nf4"]))
    with pytest.raises(ModelError, match="the weight files are not"):
        own_quantization.of(base(tmp_path / "whole", NF4, WEIGHT))
    assert own_quantization.of(base(tmp_path / "not here", NF4)), "without weights config.json is believed"


@pytest.mark.parametrize(
    ("settings", "make", "method", "more", "says"),
    [
        (NF4, "nf4", "full", {}, "cannot be trained themselves"),
        (NF4, "nf4", "lora", {}, "model.quantize is none"),
        (INT8, "int8", "qlora", {}, "model.quantize is nf4"),
        (NF4, "nf4", "qlora", {"model.double_quant": "true"}, "another form"),
        (NF4, "nf4", "qlora", {"adapter.init_lora_weights": "loftq"}, "loftq"),
        (FP8, "fp8", "qlora", {}, "not quantised again"),
    ],
    ids=["full", "lora", "int8", "double", "loftq", "fp8"],
)
def test_what_cannot_be_trained(
    tmp_path: Path, settings: dict[str, Any], make: str, method: str, more: dict[str, str], says: str
) -> None:
    own = own_quantization.of(base(tmp_path, settings, WEIGHT, BESIDE[make]))
    with pytest.raises(ConfigError, match=says):
        own_quantization.check_training(config(method, **more), own)


@pytest.mark.parametrize(
    ("settings", "make", "method", "more"),
    [
        (NF4, "nf4", "qlora", {}),
        (DOUBLE, "nf4", "qlora", {"model.double_quant": "true"}),
        (NF4, "nf4", "dpo", {"adapter.kind": "lora", "model.quantize": "nf4"}),
        (INT8, "int8", "lora", {"model.quantize": "int8"}),
        (FP8, "fp8", "lora", {}),
        (FP8, "fp8", "full", {}),
    ],
    ids=["nf4", "double", "dpo", "int8", "fp8", "fp8 full"],
)
def test_what_can_be_trained(
    tmp_path: Path, settings: dict[str, Any], make: str, method: str, more: dict[str, str]
) -> None:
    own = own_quantization.of(base(tmp_path, settings, WEIGHT, BESIDE[make]))
    own_quantization.check_training(config(method, **more), own)
    own_quantization.check_training(config(method, **more), None)


def test_another_make_is_refused_by_its_name(tmp_path: Path) -> None:
    own = own_quantization.of(base(tmp_path, GPTQ, WEIGHT, BESIDE["gptq"]))
    with pytest.raises(ModelError, match="gptq, 4 bits"):
        own_quantization.check_training(config("lora"), own)


def test_the_size_of_the_weights_that_are_not_quantised(tmp_path: Path) -> None:
    folder = base(tmp_path, NF4, WEIGHT, BESIDE["nf4"])
    size = (folder / "model.safetensors").stat().st_size
    assert own_quantization.whole_size(folder) == 4 * size
    base(tmp_path, None)
    save_file({WEIGHT: torch.zeros(2)}, folder / "model.safetensors")
    assert own_quantization.whole_size(folder) == (folder / "model.safetensors").stat().st_size


def test_it_is_forgotten_by_a_configuration() -> None:
    made = LlamaConfig(quantization_config=NF4)
    made.text_config = LlamaConfig(quantization_config=NF4)
    own_quantization.forget(made)
    assert not hasattr(made, "quantization_config")
    assert not hasattr(made.text_config, "quantization_config")
    own_quantization.forget(LlamaConfig())
