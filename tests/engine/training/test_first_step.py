"""A training that trains nothing is refused after its first step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from mlflow_ft.engine.training import sft, trainable
from mlflow_ft.engine.training.first_step import GradientCallback
from mlflow_ft.errors import RefusedError

Bencher = Callable[..., Any]


def test_an_adapter_that_the_model_does_not_go_through_is_refused(bench: Bencher) -> None:
    """The output of every adapted layer is cut off from the graph, as code of a model may do."""
    setup = bench("lora", **{"adapter.target_modules": "[down_proj]"})
    model = trainable.prepare(setup.job, setup.data, setup.base)
    for name, layer in model.module.named_modules():
        if name.endswith("down_proj"):
            layer.register_forward_hook(lambda layer, inputs, output: output.detach())
    anything = model.module.get_input_embeddings().weight  # so that there is a graph at all
    anything.requires_grad_(requires_grad=True)
    model.module.get_base_model().lm_head.weight.requires_grad_(requires_grad=False)
    anything.register_hook(torch.zeros_like)
    with pytest.raises(RefusedError, match="nothing is trained"):
        sft.train(setup.job, setup.data, model)


def test_tokens_that_no_row_has_train_nothing(bench: Bencher) -> None:
    unused = 300
    settings = {"adapter.kind": "trainable-tokens", "adapter.trainable_token_indices": f"[{unused}]"}
    setup = bench("lora", **settings)
    assert all(unused not in row.input_ids for row in setup.data.train.encoded)
    with pytest.raises(RefusedError, match="gradients of all 1 weight tensors are zero"):
        setup.train()


def step(gradient: torch.Tensor | None, *, zero_is_right: bool = False, times: int = 1) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = gradient
    model = SimpleNamespace(parameters=lambda: iter([weight]))
    callback = GradientCallback(zero_is_right=zero_is_right)
    for _ in range(times):
        arguments: Any = SimpleNamespace(deepspeed=None, fsdp=None)
        callback.on_pre_optimizer_step(arguments, TrainerState(), TrainerControl(), model=model)
        weight.grad = None  # only the first step is looked at


def test_where_answers_are_rewarded_alike_a_zero_is_right_and_nothing_is_not() -> None:
    step(torch.tensor([0.0, 1e-30]), times=3)
    step(torch.zeros(2), zero_is_right=True)
    with pytest.raises(RefusedError, match="are zero"):
        step(torch.zeros(2))
    with pytest.raises(RefusedError, match="are missing"):
        step(None, zero_is_right=True)
