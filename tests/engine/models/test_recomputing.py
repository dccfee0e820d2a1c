"""What is computed again in the backward pass: less is kept, and every gradient is the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.models.recomputing import Recomputing
from mlflow_ft.engine.models.unpadding import Unpadding

Small = Callable[..., Path]
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmoe", "mixtral", "llama4", "gpt2", "phi3")
WITH_ADAPTER = ("llama", "qwen3", "gemma3_text")
IDS = torch.randint(3, 500, (3, 24), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "attention_mask": (torch.arange(24) < torch.tensor([[24], [9], [17]])).long()}


def loaded(folder: Path, *, lora: bool, dropout: float = 0.0, **more: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).train()
    if lora:
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout)
        model = get_peft_model(model, config)
    return model


def passes(model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients, and the bytes that the forward pass keeps besides the weights."""
    model.zero_grad()
    torch.manual_seed(1)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, int] = {}
    hooks = torch.autograd.graph.saved_tensors_hooks

    def counting(pack: Any, unpack: Any) -> Any:
        """The hooks of torch, also those of the pass itself, which count what they keep."""

        def count(tensor: torch.Tensor) -> Any:
            found = pack(tensor)
            if isinstance(found, torch.Tensor) and found.layout is torch.strided:
                storage = found.untyped_storage()
                kept[storage._cdata] = 0 if storage._cdata in weights else storage.nbytes()
            return found

        return hooks(count, unpack)

    counted = mock.patch.object(torch.autograd.graph, "saved_tensors_hooks", counting)
    with counted, counting(lambda tensor: tensor, lambda tensor: tensor):
        logits = model(**INPUTS, use_cache=False).logits
    logits[INPUTS["attention_mask"].bool()].float().pow(2).mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}, sum(
        kept.values()
    )


def compare(model: Any) -> float:
    """Whether all gradients are equal; returns the share of bytes that is still kept."""
    before, all_of_it = passes(model)
    recomputing = Recomputing(model)
    recomputing.on()
    after, rest = passes(model)
    recomputing.off()
    assert before
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    again, whole = passes(model)
    assert whole == all_of_it, "the model is as it was"
    assert all(torch.equal(before[name], again[name]) for name in before)
    return rest / all_of_it


@pytest.mark.parametrize(
    ("kind", "lora"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in WITH_ADAPTER)]
)
def test_gradients_are_equal_bit_for_bit(small: Small, kind: str, *, lora: bool) -> None:
    assert compare(loaded(small(kind), lora=lora)) < 1


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_much_less_is_kept(small: Small, *, lora: bool) -> None:
    assert compare(loaded(small("llama"), lora=lora)) < 0.72


def test_with_dropout_checkpointing_and_without_padding(small: Small) -> None:
    assert compare(loaded(small("llama"), lora=True, dropout=0.3)) < 1
    model = loaded(small("llama"), lora=True)
    Unpadding(model).on()
    assert compare(model) < 0.72
    model = loaded(small("llama"), lora=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    assert compare(model) <= 1


def test_padding_is_left_out_of_what_is_computed_again(small: Small) -> None:
    """In the order in which a training begins and ends them."""
    model = loaded(small("llama"), lora=True)
    before = passes(model)[0]
    recomputing, unpadding = Recomputing(model), Unpadding(model)
    recomputing.on()
    assert unpadding.possible
    unpadding.on()
    after = passes(model)[0]
    assert 0 < unpadding.tokens < unpadding.positions
    assert all(torch.allclose(after[name], before[name], rtol=1e-4, atol=1e-6) for name in before)
    unpadding.off()
    recomputing.off()
    assert all(torch.equal(passes(model)[0][name], before[name]) for name in before)


def test_sparse_weights_are_kept(small: Small) -> None:
    """Some adapters train a few entries of each matrix, and have no storage of their own."""
    base = AutoModelForCausalLM.from_pretrained(small("llama"), dtype=torch.float32).train()
    model = get_peft_model(base, ShiraConfig(r=2, target_modules=["q_proj", "down_proj"], init_weights=False))
    assert compare(model) < 1


def test_mixed_precision_is_computed_again_as_it_was(small: Small) -> None:
    model = loaded(small("llama"), lora=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compare(model) < 1


def test_an_mlp_that_computes_something_else_is_left_alone(small: Small) -> None:
    model = loaded(small("llama"), lora=False)
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.forward = lambda x, mlp=mlp: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * 2)
    assert compare(model) < 1


def test_a_source_that_was_changed_is_an_error_and_no_wrong_gradient(small: Small) -> None:
    model = loaded(small("llama"), lora=True)
    found: list[torch.Tensor] = []
    model.base_model.model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda layer, given, output: found.append(output)
    )
    Recomputing(model).on()
    loss = model(**INPUTS, use_cache=False).logits.pow(2).mean()
    with torch.no_grad():
        found[0].add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
        loss.backward()
