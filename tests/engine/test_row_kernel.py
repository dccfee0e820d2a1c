"""Attention of rows laid end to end in one function: where torch would use another kernel, it is left to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlflow_ft.engine import row_kernel


def states(*, size: int = 8, heads: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, heads, 6, size, generator=torch.Generator().manual_seed(heads)).to(dtype)


OTHERS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.1},
    "values of another size": {"value": states(size=4)},
    "types that differ": {"key": states(dtype=torch.bfloat16)},
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_the_kernel_does_not_compute(case: str) -> None:
    usual: dict[str, Any] = {"query": states(heads=4), "key": states(), "value": states(), "dropout": 0.0}
    assert row_kernel.fits(**usual)
    assert not row_kernel.fits(**usual | OTHERS[case])


def test_autocast_is_left_to_torch() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not row_kernel.fits(states(), states(), states(), 0.0)


def test_the_mask_of_numbers_is_made_once() -> None:
    row = row_kernel.Row(2, mask=torch.tensor([[[[True, False], [True, True]]]]))
    numbers = row.numbers(torch.float32)
    assert numbers is not None
    assert row.numbers(torch.float32) is numbers
    assert numbers.tolist() == [[[[0.0, -torch.inf], [0.0, 0.0]]]]


def test_what_is_kept_is_kept_once() -> None:
    """Queries, keys, values and outputs of all rows, and a number a query and head; no copy of the output."""
    query, key, value = (states(heads=heads).requires_grad_() for heads in (4, 2, 2))
    places = torch.tensor([0, 1, 2, 4, 5])
    mask = torch.ones(2, 5, dtype=torch.bool).tril(3)[None, None]
    rows = [row_kernel.Row(4), row_kernel.Row(2, places, mask)]
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = row_kernel.attention(query, key, value, rows, causal=True, scale=None)
    sizes = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in kept}
    assert out.untyped_storage().data_ptr() in sizes
    assert sum(sizes.values()) == query.numel() + key.numel() + value.numel() + out.numel() + 4 * 6
    whole = torch.nn.functional.scaled_dot_product_attention
    seen = [states.index_select(2, places) for states in (key, value)]
    parts = [
        whole(query[:, :, :4], key[:, :, :4], value[:, :, :4], is_causal=True, enable_gqa=True),
        whole(query[:, :, 4:], *seen, attn_mask=mask, enable_gqa=True),
    ]
    expected = torch.cat(parts, dim=2).transpose(1, 2)
    assert torch.equal(out, expected)
    weights = torch.arange(out.numel()).view_as(out).float().cos()
    found, right = (torch.autograd.grad((some * weights).sum(), [query, key, value]) for some in (out, expected))
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
