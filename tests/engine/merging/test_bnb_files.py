"""Files quantised by bitsandbytes: each weight read alone equals the whole model's `dequantize()`, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.merging import bnb_files
from mlflow_ft.engine.merging.tensor_files import ModelFiles
from mlflow_ft.engine.models import skeleton
from mlflow_ft.errors import ModelError
from tests.engine.foreign import base_model, says

Small = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("llama", "nf4"), ("llama", "nf4 twice"), ("llama", "fp4"), ("llama", "int8"), ("gpt2", "nf4"), ("gpt2", "int8")],
)
def test_each_weight_is_what_it_stands_for_in_the_whole_model(small: Small, kind: str, stored: str) -> None:
    base = small(kind, stored=stored)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    files = bnb_files.of(base, model)
    whole = model.dequantize().state_dict()
    prefix = "" if kind == "llama" else "transformer."
    assert len(files.places) < len(ModelFiles(base).places), "constants stored with the weights are not weights"
    for name in files.places:
        weight = files.read(name)
        wanted = whole[name if name in whole else f"{prefix}{name}"]
        assert torch.equal(weight, wanted.to(weight.dtype)), name
        assert files.entries[name].shape == tuple(weight.shape)
        assert files.entries[name].dtype == weight.dtype


def test_weights_that_a_model_keeps_turned(small: Small) -> None:
    """GPT-2 has them as (in, out), and bitsandbytes as (out, in)."""
    for stored in ("nf4", "int8"):
        base = small("gpt2", stored=stored)
        plain = base_model(small("gpt2"))
        files = bnb_files.of(base, skeleton.bare_model(base))
        plain.load_state_dict({name: files.read(name) for name in files.places}, strict=False)
        wanted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).dequantize().float()
        torch.testing.assert_close(says(plain), says(wanted), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(says(plain), says(base_model(small("gpt2"))), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_not_quantised_is_read_as_it_is(small: Small) -> None:
    assert type(bnb_files.of(small("llama"))) is ModelFiles


def test_an_order_of_rows_that_is_not_known_is_refused(small: Small, tmp_path: Path) -> None:
    base = shutil.copytree(small("llama", stored="int8"), tmp_path / "base")
    state = load_file(base / "model.safetensors")
    name = next(name for name in state if name.endswith(f".{bnb_files.FORMAT}"))
    save_file(state | {name: torch.tensor(1, dtype=torch.uint8)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="in the order of an earlier bitsandbytes"):
        bnb_files.of(base).read(f"{name.rpartition('.')[0]}.weight")
