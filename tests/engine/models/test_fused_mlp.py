"""Gated MLPs in one step: the values and gradients of transformers' and PEFT's own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from mlflow_ft.engine.models.fused_lora import FusedLora
from mlflow_ft.engine.models.fused_mlp import FusedMlp, GatedProduct, Matrix
from mlflow_ft.engine.models.recomputing import Recomputing
from tests.engine.lora_models import IDS, adapted, check_same, gradients

Small = Callable[..., Path]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each MLP that was computed in one step, how many of its layers have a low-rank product."""
    found: list[int] = []
    forward = GatedProduct.forward

    def counted(ctx: Any, x: Any, layers: Any, *trained: Any) -> Any:
        found.append(sum(layer.low is not None for layer in layers))
        return forward(ctx, x, layers, *trained)

    monkeypatch.setattr(GatedProduct, "forward", staticmethod(counted))
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_gradients_are_those_of_peft(small: Small, products: list[int], kind: str) -> None:
    model = adapted(small(kind))
    check_same(model, FusedMlp(model))
    assert products == [3] * len(FusedMlp(model).layers)
    assert products


def test_matrices_in_4_bits(small: Small, products: list[int]) -> None:
    model = adapted(small("llama"), quantised=True)
    assert type(mlp(model).up_proj.base_layer).__name__ == "Linear4bit"
    check_same(model, FusedMlp(model))
    assert products == [3] * len(FusedMlp(model).layers)
    assert products


def test_matrices_in_4_bits_of_another_type_stay_as_they_are(small: Small, products: list[int]) -> None:
    model = adapted(small("llama"), quantised=True)
    mlp(model).up_proj.base_layer.compute_dtype = torch.bfloat16
    # On some processors a last bit of its input differs, and bfloat16 may round that up.
    check_same(model, FusedMlp(model), tolerance=1e-3)
    assert len(products) == len(FusedMlp(model).layers) - 1


def test_layers_without_lora_are_matrices(small: Small, products: list[int]) -> None:
    model = adapted(small("llama"), target_modules=["q_proj", "down_proj"])
    check_same(model, FusedMlp(model))
    assert set(products) == {1}


@pytest.mark.parametrize("quantised", [False, True])
def test_with_its_adapter_off_it_is_the_base(small: Small, products: list[int], *, quantised: bool) -> None:
    """So dpo and kto compute their reference."""
    model = adapted(small("llama"), quantised=quantised)
    fused = FusedMlp(model)
    with torch.no_grad(), model.disable_adapter():
        usual = model(IDS).logits
    fused.on()
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, usual, rtol=1e-5, atol=1e-5)
        assert set(products) == {0}
    if not quantised:
        model.merge_adapter()
        with torch.no_grad(), model.disable_adapter():  # PEFT takes it out of the weights again
            torch.testing.assert_close(model(IDS).logits, usual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_activations_that_are_computed_again(
    small: Small, products: list[int], *, checkpointing: bool, recomputing: bool
) -> None:
    model = adapted(small("llama"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    low_rank, again = FusedLora(model), Recomputing(model)
    low_rank.on()
    if recomputing:
        again.on()
    check_same(model, FusedMlp(model))
    again.off()
    low_rank.off()
    assert set(products) == {3}


def test_less_is_kept_for_the_backward_pass(small: Small) -> None:
    def kept(*parts: Any) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        for part in parts:
            part.on()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(input_ids=IDS, use_cache=False)
        for part in reversed(parts):
            part.off()
        del output
        return sum(sizes.values())

    model = adapted(small("llama"))
    assert kept(FusedMlp(model)) < kept()


def layer(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A frozen layer with this matrix."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).requires_grad_(requires_grad=False)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return made


def test_gradcheck() -> None:
    shapes = {"x": (2, 3, 4), "of": (6, 4), "low": (2, 4), "high": (6, 2), "down": (4, 6), "in": (2, 6), "out": (4, 2)}
    given = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    bias, up = torch.randn(6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)

    def product(x: Any, low: Any, high: Any, inside: Any, outside: Any) -> Any:
        layers = [
            Matrix(layer(given["of"], bias), low, high, 1.7),
            Matrix(layer(up), None, None, 0.0),
            Matrix(layer(given["down"]), inside, outside, 0.3),
        ]
        return GatedProduct.apply(x, layers, low, high, None, None, inside, outside)

    trained = [given[name].requires_grad_() for name in ("x", "low", "high", "in", "out")]
    assert torch.autograd.gradcheck(product, trained)


def hooked(model: Any) -> None:
    mlp(model).down_proj.register_forward_hook(lambda layer, given, output: output * 2)


def hooked_inside(model: Any) -> None:
    mlp(model).up_proj.base_layer.register_forward_pre_hook(lambda layer, given: (given[0] * 2,))


def hooked_activation(model: Any) -> None:
    mlp(model).act_fn = nn.SiLU()  # elsewhere all layers have the same one
    mlp(model).act_fn.register_forward_hook(lambda layer, given, output: None)


def gradient_hook(model: Any) -> None:
    mlp(model).gate_proj.register_full_backward_hook(lambda layer, given, output: (given[0] * 2,))


def trained_whole(model: Any) -> None:
    mlp(model).gate_proj.base_layer.weight.requires_grad_()


def several_adapters(model: Any) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def mlp(model: Any) -> Any:
    return model.get_base_model().model.layers[0].mlp


@pytest.mark.parametrize(
    "change", [hooked, hooked_inside, hooked_activation, gradient_hook, trained_whole, several_adapters]
)
def test_what_is_more_than_a_product_stays_as_it_is(
    small: Small, products: list[int], change: Callable[[Any], None]
) -> None:
    model = adapted(small("llama"))
    change(model)
    expected = gradients(model)
    FusedMlp(model).on()
    found = gradients(model)
    apart = max(float((found[name] - gradient).norm() / gradient.norm()) for name, gradient in expected.items())
    assert apart <= 1e-5
    assert len(products) == (0 if change is several_adapters else model.config.num_hidden_layers - 1)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.2}, {"use_dora": True}], ids=["dropout", "dora"])
def test_other_adapters_stay_pefts_own(small: Small, products: list[int], settings: dict[str, Any]) -> None:
    model = adapted(small("llama"), **settings)
    expected = gradients(model)
    FusedMlp(model).on()
    assert all(torch.equal(one, expected[name]) for name, one in gradients(model).items())
    assert not products


def test_an_mlp_of_the_same_names_that_computes_something_else_is_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
            self.act_fn = nn.SiLU()

        def forward(self, x: torch.Tensor) -> Any:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 0.5

    class Same(Other):
        def forward(self, x: torch.Tensor) -> Any:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    assert len(FusedMlp(nn.ModuleList([Other(), Same()])).layers) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_is_the_same_and_the_setting_turns_it_off(
    bench: Callable[..., Any], products: list[int], monkeypatch: pytest.MonkeyPatch, *, fused: bool
) -> None:
    settings = {"max_steps": 3, "learning_rate": 1e-2, "adapter.fused": str(fused).lower()}
    setup = bench("lora", **settings)
    setup.train()
    assert bool(products) is fused
    monkeypatch.setattr(FusedMlp, "on", lambda self: None)
    usual = bench("lora", **settings)
    usual.train()
    assert setup.curve("train/loss") == pytest.approx(usual.curve("train/loss"), rel=1e-5)
