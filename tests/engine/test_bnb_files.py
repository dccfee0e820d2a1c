"""Files of bitsandbytes: each weight alone is, to the bit, what the whole model's `dequantize()` makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlflow_ft.engine import bnb_files
from mlflow_ft.engine.skeleton import bare_model
from mlflow_ft.errors import ModelError
from tests.reports import small_models

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
Small = Callable[..., Path]
MAKES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def eight(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.quantised(small("llama"), tmp_path_factory.mktemp("eight") / "model", **MAKES["int8"])


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2 keeps them as (in, out), bitsandbytes as (out, in)
def test_each_weight_is_what_the_whole_model_says(small: Small, tmp_path: Path, kind: str, make: str) -> None:
    folder = small_models.quantised(small(kind), tmp_path / "model", **MAKES[make])
    files = bnb_files.of(folder, bare_model(folder))
    wanted = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").dequantize().state_dict()
    assert set(files.places) <= set(wanted), "without what lies beside a weight"
    assert len(files.states) == (14 if kind == "llama" else 8)
    for name, entry in files.entries.items():
        weight = files.read(name)
        assert (tuple(weight.shape), weight.dtype) == (entry.shape, entry.dtype), name
        whole = wanted[name].T if kind == "gpt2" and ".c_" in name and name.endswith("weight") else wanted[name]
        assert torch.equal(weight, whole.to(weight.dtype)), name


def test_a_base_that_is_not_quantised_is_read_as_it_is(small: Small) -> None:
    files = bnb_files.of(small("llama"))
    assert type(files) is bnb_files.ModelFiles
    assert {name: entry.shape for name, entry in files.entries.items()} == {
        name: tuple(weight.shape) for name, weight in load_file(small("llama") / "model.safetensors").items()
    }


def test_an_order_of_rows_of_an_earlier_version_is_refused(eight: Path, tmp_path: Path) -> None:
    files = bnb_files.of(eight)
    assert isinstance(files, bnb_files.StoodFor)
    weight, scales = next((name, state) for name, state in files.states.items() if "q_proj" in name)
    state = load_file(eight / "model.safetensors")
    state[scales.replace("SCB", "weight_format")] = torch.tensor(2, dtype=torch.uint8)
    (tmp_path / "config.json").write_bytes((eight / "config.json").read_bytes())
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="q_proj"):
        bnb_files.of(tmp_path).read(weight)
