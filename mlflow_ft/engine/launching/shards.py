"""Weights that are spread over processes (FSDP): as whole tensors, for the disk and for one process, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def settle(module: nn.Module) -> None:
    """Release whole weights that a pass has left in memory: every parameter is a share again."""
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


def like(saved: Tensor, live: Tensor) -> Tensor:
    """A whole tensor, spread as another one is; every process must call it."""
    if not isinstance(live, DTensor):
        return saved
    return distribute_tensor(saved.to(live.device, live.dtype), live.device_mesh, live.placements)


def optimizer_state(optimizer: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
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
