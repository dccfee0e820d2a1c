"""Loading a base, quantised or not, and an adapter onto it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import sft, trainable
from mlflow_ft.errors import ModelError

Bench = Callable[..., Any]


def gradients_of_nf4(bench: Any, *, evaluated: bool) -> dict[str, torch.Tensor]:
    """The gradients of a LoRA on an NF4 base, after an evaluation pass or without one."""
    base = loading.load_base(bench.job.config, bench.base)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    module = get_peft_model(base, config)
    ids = torch.arange(40)[None]
    if evaluated:
        module.eval()
        with torch.no_grad():
            module(input_ids=ids)
    module.train()
    module(input_ids=ids, labels=ids).loss.backward()
    return {name: weight.grad for name, weight in module.named_parameters() if weight.requires_grad}


def test_an_evaluation_before_training_changes_no_gradient(bench: Bench) -> None:
    """Fails without `keep_exact` on CPUs with AVX512-BF16: bitsandbytes 0.50 repacks what it evaluates."""
    setup = bench("qlora")
    before = gradients_of_nf4(setup, evaluated=False)
    after = gradients_of_nf4(setup, evaluated=True)
    assert len(before) == 28
    for name, gradient in before.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(("quantize", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt"), ("none", "Linear")])
def test_the_base_is_held_as_asked(bench: Bench, quantize: str, kind: str) -> None:
    setup = bench("lora", **{"model.quantize": quantize})
    base = loading.load_base(setup.job.config, setup.base)
    assert type(base.model.layers[0].mlp.down_proj).__name__ == kind
    assert type(base.lm_head).__name__ == "Linear"
    assert not base.training


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_modules_that_are_not_there_are_refused(bench: Bench, method: str) -> None:
    setup = bench(method, **{"adapter.target_modules": "no_such_layer"})
    with pytest.raises(ModelError, match="does not fit") as caught:
        trainable.prepare(setup.job, setup.data, setup.base)
    assert "adapter.target_modules" in caught.value.hint


def test_weights_that_cannot_be_read_are_refused(bench: Bench, tmp_path: Path) -> None:
    setup = bench("lora")
    (tmp_path / "config.json").write_text((setup.base.path / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is, it must be ours
        loading.load_base(setup.job.config, setup.base, path=tmp_path)
    assert isinstance(caught.value, ModelError), repr(caught.value)


def test_only_the_adapter_trains_and_all_of_it_is_counted(bench: Bench) -> None:
    setup = bench("qlora", **{"adapter.r": 4})
    plain = trainable.prepare(bench("full").job, setup.data, setup.base)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    names = {name for name, weight in model.module.named_parameters() if weight.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    # r (in + out) of q, k, v, o, gate, up, down in two layers
    assert model.trainable == 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert model.total == plain.total == plain.trainable  # 4-bit weights are counted one by one


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapter_weights_stay_float32_through_training(bench: Bench, method: str) -> None:
    setup = bench(method, **{"model.dtype": "bfloat16", "max_steps": 2})
    model = trainable.prepare(setup.job, setup.data, setup.base)
    trained = sft.train(setup.job, setup.data, model)
    training = {weight.dtype for weight in model.module.parameters() if weight.requires_grad}
    saved = {weight.dtype for weight in load_file(trained.folder / "adapter" / "adapter_model.safetensors").values()}
    assert training == saved == {torch.float32}
    assert model.module.get_base_model().model.norm.weight.dtype in (torch.bfloat16, torch.float32)


def test_another_seed_makes_another_adapter_and_the_same_one_the_same(bench: Bench) -> None:
    def weights(seed: int) -> torch.Tensor:
        setup = bench("lora", seed=seed)
        torch.rand(3)  # whatever was drawn before
        module = trainable.prepare(setup.job, setup.data, setup.base).module
        return module.get_parameter("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight").detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_model_is_told_the_end_and_pad_tokens(bench: Bench) -> None:
    setup = bench("lora")
    module = trainable.prepare(setup.job, setup.data, setup.base).module.get_base_model()
    tokenizer = setup.data.tokenizer
    assert module.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert module.generation_config.pad_token_id == module.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in module.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("asked", "stored", "dtype"),
    [
        ("auto", {"dtype": "bfloat16"}, torch.bfloat16),
        ("auto", {"torch_dtype": "torch.float16"}, torch.float16),
        ("auto", {"dtype": None}, torch.float32),
        ("float32", {"dtype": "bfloat16"}, torch.float32),
        ("bfloat16", {}, torch.bfloat16),
    ],
)
def test_saved_dtype(bench: Bench, tmp_path: Path, asked: str, stored: dict[str, Any], dtype: torch.dtype) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = bench("lora", **{"package.dtype": asked}).job.config
    assert loading.saved_dtype(config, tmp_path) is dtype


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize(("revision", "kept"), [("sha256:12", None), ("0123abcd", "0123abcd")])
def test_the_adapter_names_its_base_not_where_it_lies(bench: Bench, method: str, revision: str, kept: str) -> None:
    setup = bench(method)
    base = replace(setup.base, name_or_path="owner/name", revision=revision)
    settings = trainable.prepare(setup.job, setup.data, base).module.peft_config["default"]
    assert (settings.base_model_name_or_path, settings.revision) == ("owner/name", kept)
