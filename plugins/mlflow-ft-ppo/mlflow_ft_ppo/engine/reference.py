"""The policy as it was at the start, the reference of the KL penalty."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from mlflow_ft.engine.training.loop import REFERENCE
from mlflow_ft_ppo.engine.policy import PolicyWithValue

Reference = Callable[[], AbstractContextManager[PolicyWithValue]]
"""`with reference() as start: start(...)`."""


def of_start(policy: PolicyWithValue, prompt: Sequence[int]) -> Reference:
    """The cheapest way to keep the present policy: its base alone, a frozen copy of its adapter, or a whole copy.

    A prompt shows whether the adapter changes anything yet: a new LoRA does not; one that is trained further, or that
    was initialised from a part of the base (PiSSA), does.
    """
    if not hasattr(policy.model, "peft_config"):
        return _whole_copy(policy)
    return _base_alone(policy) if _changes_nothing(policy.model, prompt) else _adapter_copy(policy.model, policy)


@torch.no_grad()
def _changes_nothing(model: Any, prompt: Sequence[int]) -> bool:
    ids = torch.tensor([list(prompt)], device=model.device)
    with model.disable_adapter():
        without = model(input_ids=ids, use_cache=False).logits
    return torch.equal(model(input_ids=ids, use_cache=False).logits, without)


def _whole_copy(policy: PolicyWithValue) -> Reference:
    start = copy.deepcopy(policy).requires_grad_(requires_grad=False)

    @contextmanager
    def as_it_was() -> Iterator[PolicyWithValue]:
        yield start

    return as_it_was


def _base_alone(policy: PolicyWithValue) -> Reference:
    @contextmanager
    def without_adapter() -> Iterator[PolicyWithValue]:
        with policy.model.disable_adapter():
            yield policy

    return without_adapter


def _adapter_copy(model: Any, policy: PolicyWithValue) -> Reference:
    """A second adapter with the same weights, under the name that `training.keep` does not save."""
    active = model.active_adapter
    settings = copy.deepcopy(model.peft_config[active])
    settings.inference_mode = True
    model.add_adapter(REFERENCE, settings)
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        twin = f"{name}.".replace(f".{active}.", f".{REFERENCE}.").removesuffix(".")
        if twin != name:
            weights[twin].data.copy_(weight.data)
    model.set_adapter(active)

    @contextmanager
    def with_frozen_adapter() -> Iterator[PolicyWithValue]:
        model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield policy
        finally:
            model.set_adapter(active)

    return with_frozen_adapter
