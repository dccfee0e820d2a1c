"""Weights of 4-bit layers that are held: equal outputs, no more memory than there was, and nothing left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from mlflow_ft.engine import hardware
from mlflow_ft.engine.judging import greedy
from mlflow_ft.engine.models import held_weights
from mlflow_ft.engine.training import trainable

Bench = Callable[..., Any]
IDS = torch.arange(24).view(2, 12) + 30


@pytest.fixture
def model(bench: Bench) -> Any:
    """A base in nf4 with an adapter that changes what it says."""
    setup = bench("qlora")
    adapted = trainable.prepare(setup.job, setup.data, setup.base).module.eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


@pytest.fixture
def dequantised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the weights that bitsandbytes has dequantised."""
    sizes: list[int] = []
    dequantise = torch.ops.bitsandbytes.dequantize_4bit.default

    def counting(*given: Any, **named: Any) -> Any:
        found = dequantise(*given, **named)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", counting)
    return sizes


def enough(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    monkeypatch.setattr(hardware, "in_use", lambda: 1 << 30)
    monkeypatch.setattr(hardware, "most_in_use", lambda: (1 << 30) + spare)


def size_of(model: Any) -> int:
    """Bytes of the weights in float32."""
    return sum(4 * layer.in_features * layer.out_features for layer in layers_of(model))


def layers_of(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, Linear4bit)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_are_equal_and_no_weight_is_dequantised_again(
    model: Any, dequantised: list[int], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    enough(monkeypatch, size_of(model))
    model.to(dtype)
    for layer in layers_of(model):
        layer.compute_dtype = dtype
    with torch.no_grad():
        whole, one = model(IDS).logits, model(IDS[:1, :1]).logits
        dequantised.clear()
        with held_weights.held(model):
            assert sum(dequantised) == size_of(model) // 4
            assert torch.equal(model(IDS).logits, whole)
            assert torch.equal(model(IDS[:1, :1]).logits, one)
    assert sum(dequantised) == size_of(model) // 4


def test_gradients_are_those_of_the_usual_pass(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    enough(monkeypatch, size_of(model))
    gradients = []
    for context in (nullcontext(), held_weights.held(model)):
        model.zero_grad()
        with context:
            model(IDS).logits.square().mean().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert gradients[0]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_answers_are_made_with_weights_held(
    model: Any, dequantised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for spare in (0, size_of(model)):
        enough(monkeypatch, spare)
        dequantised.clear()
        prompts = [[5, 6, 7], [8, 9]]
        found.append(list(greedy.batches(model, prompts, length=6, batch_size=1, pad_token_id=0)))
        once = sum(dequantised) == size_of(model) // 4
        assert once is bool(spare)
    assert found[0] == found[1]


def test_nothing_is_left_afterwards(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    enough(monkeypatch, size_of(model))
    layers = layers_of(model)
    with pytest.raises(KeyError), held_weights.held(model):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers)


def test_no_more_memory_is_taken_than_the_process_has_had(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(model)
    for spare, held in (
        (size_of(model) - 1, layers[:-1]),
        (4 * layers[0].weight.quant_state.shape.numel(), layers[:1]),
    ):
        enough(monkeypatch, spare)
        with held_weights.held(model):
            assert [layer for layer in layers if "forward" in vars(layer)] == held
    enough(monkeypatch, 0)
    with held_weights.held(model):
        assert not any("forward" in vars(layer) for layer in layers)
