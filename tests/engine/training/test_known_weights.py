"""What a trainer looks up in a model at every step is looked up once, and is what it would find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from mlflow_ft.engine.training import known_weights, trainable

Bench = Callable[..., Any]


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_what_transformers_counts_is_counted_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    counted: list[bool] = []
    operations: list[tuple[int, int]] = []
    count, of_batch = PreTrainedModel.num_parameters, Trainer.floating_point_ops

    def counting(self: Any, *given: Any, **options: Any) -> int:
        counted.append(True)
        return count(self, *given, **options)

    def noted(self: Any, inputs: Any) -> int:
        found = of_batch(self, inputs)
        module = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        operations.append((found, 6 * inputs["input_ids"].numel() * count(module, exclude_embeddings=True)))
        return found

    monkeypatch.setattr(PreTrainedModel, "num_parameters", counting)
    monkeypatch.setattr(Trainer, "floating_point_ops", noted)
    bench(method).train()
    assert len(operations) == 4, "one for each step"
    assert all(found == wanted > 0 for found, wanted in operations)
    assert len(counted) == 1


def test_the_weights_are_listed_once_to_clear_gradients(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    clear = nn.Module.zero_grad

    def noted(self: Any, **options: Any) -> None:
        listed.append(1)
        clear(self, **options)

    monkeypatch.setattr(nn.Module, "zero_grad", noted)
    setup = bench("lora")
    setup.train()
    assert len(listed) <= 1, "none, or by accelerate"
    monkeypatch.setattr(known_weights, "known", lambda _: nullcontext())
    plain = bench("lora")
    plain.train()
    assert len(listed) > 4
    assert setup.curve("train/loss") == plain.curve("train/loss")


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_cleared(bench: Bench, *, to_none: bool) -> None:
    setup = bench("lora")
    model = trainable.prepare(setup.job, setup.data, setup.base).module
    with known_weights.known(model):
        for _ in range(2):
            model(torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
            learned = [weight for weight in model.parameters() if weight.requires_grad]
            assert any(float(weight.grad.abs().max()) > 0 for weight in learned)
            model.zero_grad(set_to_none=to_none)
            left = [weight.grad for weight in learned]
            assert all((grad is None) if to_none else not grad.any() for grad in left)


def test_afterwards_it_is_as_it_was(bench: Bench) -> None:
    setup = bench("lora")
    model = trainable.prepare(setup.job, setup.data, setup.base).module
    causal = model.get_base_model()
    with pytest.raises(KeyError), known_weights.known(model):
        with known_weights.known(model):
            assert causal.num_parameters() == sum(weight.numel() for weight in causal.parameters())
        assert "num_parameters" in vars(causal)
        assert "zero_grad" in vars(model)
        raise KeyError
    assert "num_parameters" not in vars(causal)
    assert "zero_grad" not in vars(model)
