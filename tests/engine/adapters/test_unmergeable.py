"""Adapters that cannot be merged into their base are refused before training, and before a merge begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlflow_ft.engine.adapters import unmergeable
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ModelError
from tests.engine.foreign import made

Bencher = Callable[..., Any]
OPTIONS = {
    "lora_bias=true": r"it trains biases \(lora_bias\) of 14 layers that have none in this base, such as",
    "layer_replication=[[0,2],[1,2]]": r"its layer_replication repeats layers",
    "alora_invocation_tokens=[1,2]": "aLoRA does not support safe merging",
}


@pytest.mark.filterwarnings("ignore:.*lora_bias.*")
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_refused_before_training_where_a_merge_is_wanted(bench: Bencher, options: str) -> None:
    setup = bench("lora", **{"adapter.options": options})
    with pytest.raises(ModelError, match=OPTIONS[options]) as caught:
        trainable.prepare(setup.job, setup.data, setup.base)
    assert "--package.packagers adapter" in caught.value.hint
    alone = bench("lora", **{"adapter.options": options, "package.packagers": "[adapter]"})
    assert trainable.prepare(alone.job, alone.data, alone.base).trainable > 0


SETTINGS: dict[str, dict[str, Any]] = {
    "lora_bias=true": {"lora_bias": True},
    "layer_replication=[[0,2],[1,2]]": {"layer_replication": [[0, 2], [1, 2]]},
    "alora_invocation_tokens=[1,2]": {"alora_invocation_tokens": [1, 2]},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_merge_refuses_it_and_leaves_nothing(bench: Bencher, tmp_path: Path, options: str) -> None:
    setup = bench("lora")
    made(setup.base.path, tmp_path / "adapter", **SETTINGS[options])
    with pytest.raises(ModelError, match=f"cannot be merged: .*{OPTIONS[options]}"):
        fold.fold(setup.job.config, setup.base, tmp_path / "adapter", folder=tmp_path / "out", dtype=torch.float32)
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_biases_are_merged_where_the_base_has_them(tmp_path: Path) -> None:
    from tests.reports import small_models

    base = small_models.make("llama", tmp_path / "base", attention_bias=True, mlp_bias=True)
    made(base, tmp_path / "adapter", lora_bias=True)
    with loading.quiet_peft():
        wrapped = loading.with_adapter(loading.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    assert unmergeable.of_model(wrapped) == ""


def test_trying_a_layer_leaves_the_model_as_it_is(bench: Bencher) -> None:
    setup = bench("lora", **{"adapter.init_lora_weights": "gaussian"})
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    assert unmergeable.of_model(module) == ""
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
