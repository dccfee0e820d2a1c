"""Weights and optimizer of DeepSpeed ZeRO, which are spread over processes: as whole tensors, and back.

An optimizer's state has torch's own form, so that a checkpoint can be resumed with another strategy. DeepSpeed is an
optional dependency, and only imported by a process that trains with it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mlflow_ft.engine import ranks


def holds(weight: Tensor) -> bool:
    """Whether DeepSpeed holds a weight: in shares, or in two copies of which the exact one is in shares."""
    return hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping")


def shape(weight: Any) -> torch.Size:
    """The shape of the whole weight."""
    whole: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return whole


def whole(weight: Any) -> Tensor:
    """A whole weight, in float32 if it trains; every process must call it."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if weight.requires_grad:
        exact: Tensor = safe_get_full_fp32_param(weight)
        return exact
    with zero.GatheredParameters([weight]):
        frozen: Tensor = weight.detach().clone()
    return frozen


def put(weight: Any, value: Tensor) -> None:
    """Set a weight that trains, and its exact copy; every process must call it."""
    from deepspeed import zero

    if not hasattr(weight, "ds_id"):
        weight.data.copy_(value)
        weight.set_full_hp_param(value)
        return
    with zero.GatheredParameters([weight], modifier_rank=0):
        if ranks.leads():
            weight.data.copy_(value)
    _put_share(weight, value, None)


def _put_share(weight: Any, value: Tensor, key: str | None) -> None:
    """Set this process's share of a weight's exact copy, or of an entry of its optimizer's state (ZeRO-3)."""
    held = weight._z3_optimizer
    size = held.get_local_fp32_param(weight, key).numel()
    padded = torch.zeros(size * ranks.size(), dtype=value.dtype)  # the last share may be longer than what is left
    padded[: value.numel()] = value.flatten().cpu()
    held.set_local_hp_param(padded[size * ranks.rank() :][:size], weight, key)


# --- the optimizer


def is_zero(optimizer: Any) -> bool:
    """Whether an optimizer, as accelerate wraps it, is DeepSpeed's."""
    return type(getattr(optimizer, "optimizer", None)).__module__.startswith("deepspeed.")


def _groups(held: Any) -> list[list[Any]]:
    """The weights of each group of the inner optimizer, in its order."""
    if hasattr(held, "bit16_groups"):
        return [list(group) for group in held.bit16_groups]
    groups: list[list[Any]] = [[] for _ in held.optimizer.param_groups]
    for number, part in enumerate(held.fp16_groups):
        groups[held.sub_group_to_group_id[number]] += part
    return groups


def _flat(held: Any) -> list[Tensor]:
    """The tensors that the inner optimizer steps: the shares of many weights in one."""
    return list(getattr(held, "single_partition_of_fp32_groups", None) or held.fp32_partitioned_groups_flat)


def _link(held: Any) -> None:
    """Connect weights with their entries in the optimizer: ZeRO-2 does it after the step of the first group only."""
    if hasattr(held, "_lazy_init_hp_params_optimizer_state"):
        held._hp_optimizer_states_linked = False
        held._lazy_init_hp_params_optimizer_state()


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The state of the optimizer as torch's `state_dict`, with whole tensors; every process must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    held = optimizer.optimizer
    groups, first = _groups(held), _flat(held)[0]
    entries = held.optimizer.state.get(first, {})
    spread = [name for name, value in entries.items() if isinstance(value, Tensor) and value.shape == first.shape]
    common = {name: value for name, value in entries.items() if name not in spread}
    if entries:
        _link(held)
    state = {
        index: {**common, **{name: safe_get_full_optimizer_state(weight, name) for name in spread}}
        for index, weight in enumerate(itertools.chain(*groups))
    }
    numbers = iter(itertools.count())
    return {
        "state": state if entries else {},
        "param_groups": [
            {name: value for name, value in settings.items() if name != "params"}
            | {"params": list(itertools.islice(numbers, len(group)))}
            for settings, group in zip(held.optimizer.param_groups, groups, strict=True)
        ],
    }


def restore_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state`, or torch's `state_dict`, returned; every process must call it."""
    from deepspeed.utils import safe_set_full_optimizer_state

    held = optimizer.optimizer
    for settings, before in zip(held.optimizer.param_groups, saved["param_groups"], strict=True):
        settings.update({name: value for name, value in before.items() if name != "params"})
    weights = list(itertools.chain(*_groups(held)))
    if not saved["state"]:
        return
    entries, full = saved["state"][0], shape(weights[0])
    spread = [name for name, value in entries.items() if isinstance(value, Tensor) and value.shape == full]
    for flat in _flat(held):
        common = {name: _copy(value) for name, value in entries.items() if name not in spread}
        held.optimizer.state[flat] = common | {name: torch.zeros_like(flat) for name in spread}
    _link(held)
    for index, weight in enumerate(weights):
        for name in spread:
            value = saved["state"][index][name]
            if hasattr(weight, "ds_id"):
                _put_share(weight, value, name)
            else:
                safe_set_full_optimizer_state(weight, value, name)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


# --- what transformers keeps in a global variable


def forget() -> None:
    """Let transformers load whole models again: a ZeRO-3 configuration that it knows makes it spread each of them."""
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()


@contextmanager
def training() -> Iterator[None]:
    """Around a training: hide torch's warnings about DeepSpeed's calls, and resume from checkpoints of our own form.

    transformers' Trainer would look for one in DeepSpeed's form, and has no method that can be replaced.
    """
    from transformers import trainer

    names, load = vars(trainer), "deepspeed_load_checkpoint"
    theirs, names[load] = names[load], lambda *_, **__: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
            )
            yield
    finally:
        names[load] = theirs
