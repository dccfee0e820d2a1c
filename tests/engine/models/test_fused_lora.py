"""LoRA's part of a layer in one step: the values and gradients of PEFT's own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mlflow_ft.engine.models import fused_lora
from mlflow_ft.engine.models.fused_lora import FusedLora, LoraProduct
from mlflow_ft.engine.models.recomputing import Recomputing
from tests.engine.lora_models import IDS, adapted, check_same, gradients

Small = Callable[..., Path]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scaling of each product that was computed in one step."""
    found: list[float] = []
    forward = LoraProduct.forward

    def counted(ctx: Any, result: Any, x: Any, low: Any, high: Any, scaling: float) -> Any:
        found.append(scaling)
        return forward(ctx, result, x, low, high, scaling)

    monkeypatch.setattr(LoraProduct, "forward", staticmethod(counted))
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "qwen3", "phi3"])
def test_gradients_are_those_of_peft(small: Small, products: list[float], kind: str) -> None:
    model = adapted(small(kind))
    fused = FusedLora(model)
    check_same(model, fused)
    assert len(products) == len(fused.layers) > 0
    assert set(products) == {7 / 6}


def test_layers_in_4_bits(small: Small, products: list[float]) -> None:
    model = adapted(small("llama"), quantised=True)
    fused = FusedLora(model)
    check_same(model, fused)
    assert len(products) == len(fused.layers) > 0


def test_the_output_may_be_changed_in_place(small: Small, products: list[float]) -> None:
    """As Llama 4 adds to the output of its shared expert."""
    model = adapted(small("llama"))
    layer = FusedLora(model).layers[0]
    x = torch.randn(2, 3, layer.in_features, requires_grad=True)
    expected = torch.autograd.grad((layer(x) + 1).square().sum(), x)[0]
    FusedLora(model).on()
    torch.testing.assert_close(torch.autograd.grad(layer(x).add_(1).square().sum(), x)[0], expected)
    assert products


def test_a_layer_gets_its_own_forward_back(small: Small) -> None:
    """accelerate's hooks are in it."""
    model = adapted(small("llama"))
    layer = FusedLora(model).layers[0]
    layer.forward = own = lambda x, usual=layer.forward: usual(x)  # type: ignore[method-assign]  # as accelerate does
    fused = FusedLora(model)
    fused.on()
    assert layer.forward is not own
    fused.off()
    assert layer.forward is own
    assert "forward" not in vars(fused.layers[1])


def test_gradcheck() -> None:
    shapes = ((2, 3, 5), (2, 3, 4), (2, 4), (5, 2))
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: LoraProduct.apply(*tensors, 1.7), given)


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_activations_that_are_computed_again(
    small: Small, products: list[float], *, checkpointing: bool, recomputing: bool
) -> None:
    model = adapted(small("llama"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    again = Recomputing(model)
    if recomputing:
        again.on()
    check_same(model, FusedLora(model))
    again.off()
    assert products


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    "settings",
    [{"lora_dropout": 0.2}, {"use_dora": True}, {"lora_bias": True, "init_lora_weights": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_more_than_a_product_stays_pefts_own(
    small: Small, products: list[float], settings: dict[str, Any]
) -> None:
    model = adapted(small("llama"), **settings)
    expected = gradients(model)
    FusedLora(model).on()
    assert all(torch.equal(one, expected[name]) for name, one in gradients(model).items())
    assert not products


def test_without_its_adapter_the_model_is_the_base(small: Small, products: list[float]) -> None:
    model = adapted(small("llama"))
    FusedLora(model).on()
    with torch.no_grad(), model.disable_adapter():
        without = model(input_ids=IDS).logits
    assert not products
    model.merge_adapter()
    with torch.no_grad():
        merged = model(input_ids=IDS).logits
    assert not products
    model.unmerge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, merged)
    assert products
    assert not torch.allclose(without, merged)


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_is_the_same_and_the_setting_turns_it_off(
    bench: Callable[..., Any], products: list[float], monkeypatch: pytest.MonkeyPatch, *, fused: bool
) -> None:
    settings = {"max_steps": 3, "learning_rate": 1e-2, "adapter.fused": str(fused).lower()}
    setup = bench("lora", **settings)
    result = setup.train()
    assert bool(products) is fused
    monkeypatch.setattr(fused_lora, "plain", lambda *_: None)
    usual = bench("lora", **settings)
    weights = [load_file(one / "adapter_model.safetensors") for one in (result.adapter, usual.train().adapter)]
    assert setup.curve("train/loss") == pytest.approx(usual.curve("train/loss"), rel=1e-5)
    apart = max(float((weights[1][name] - weight).abs().max()) for name, weight in weights[0].items())
    assert apart < 1e-3
