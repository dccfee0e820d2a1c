"""The policy as it was at the start, which the KL holds the trained one to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mlflow_ft.engine.training import REFERENCE
from mlflow_ft.job import Model
from mlflow_ft_ppo.engine.policy import PolicyWithValue

Reference = Callable[[], AbstractContextManager[PolicyWithValue]]
"""`with reference() as start: start(...)`."""
BEGINS_AS_BASE = (True, "gaussian")
"""Values of `init_lora_weights` with which a new adapter changes nothing; PiSSA, OLoRA and others change the base."""


def of_start(policy: PolicyWithValue, model: Model) -> Reference:
    """The cheapest way to what the policy is now: its base alone, a frozen copy of its adapter, or of all of it."""
    if not hasattr(policy.model, "peft_config"):
        return _whole_copy(policy)
    active = policy.model.active_adapter
    config = policy.model.peft_config[active]
    if model.base.start is None and getattr(config, "init_lora_weights", True) in BEGINS_AS_BASE:
        return _base_alone(policy)
    return _adapter_copy(policy, active, config)


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


def _adapter_copy(policy: PolicyWithValue, active: str, config: Any) -> Reference:
    """A second adapter with the same weights, under the name that `training.keep` leaves out of what is saved."""
    model = policy.model
    settings = copy.deepcopy(config)
    if hasattr(settings, "init_lora_weights"):
        settings.init_lora_weights = True  # PiSSA and others would change the base's weights a second time
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
