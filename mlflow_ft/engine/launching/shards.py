"""Weights that are spread over processes (FSDP, DeepSpeed): as whole tensors, for the disk and for one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mlflow_ft.engine.launching import zero


def settle(module: nn.Module) -> None:
    """Release whole weights that a pass has left in memory: every parameter is a share again.

    `module` is the model as it trains: wrapped, or DeepSpeed's engine.
    """
    forget: Any = getattr(module, "empty_partition_cache", None)
    if forget is not None:
        forget()
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Any) -> Any:
    """Every share in nested dicts and lists as a whole tensor; every process must call it, with the same structure."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {name: whole(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(inner) for inner in value)
    return value


def whole_weight(weight: Tensor) -> Tensor:
    """A weight of the model as a whole tensor; every process must call it."""
    tensor: Tensor = zero.whole(weight) if zero.holds(weight) else whole(weight.detach())
    return tensor


def put_weight(weight: Tensor, saved: Tensor) -> None:
    """Copy a whole tensor into a weight that trains; every process must call it."""
    if zero.holds(weight):
        zero.put(weight, saved)
    else:
        weight.copy_(like(saved, weight))


def like(saved: Tensor, live: Tensor) -> Tensor:
    """A whole tensor, spread as another one is; every process must call it."""
    if not isinstance(live, DTensor):
        return saved
    return distribute_tensor(saved.to(live.device, live.dtype), live.device_mesh, live.placements)


def optimizer_state(optimizer: Any) -> Any:
    """The state of an optimizer with whole tensors; every process must call it."""
    return zero.optimizer_state(optimizer) if zero.is_zero(optimizer) else whole(optimizer.state_dict())


def restore_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` returned; every process must call it."""
    if zero.is_zero(optimizer):
        zero.restore_optimizer(optimizer, saved)
    else:
        optimizer.load_state_dict(_spread(optimizer, saved))


def _spread(optimizer: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of an optimizer, with each tensor that has a weight's shape spread as the weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        index: {
            name: like(value, weights[index])
            if isinstance(value, Tensor) and value.shape == weights[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    return {**saved, "state": state}
