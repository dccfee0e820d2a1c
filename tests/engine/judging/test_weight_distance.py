"""The largest difference between the tensors of two files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlflow_ft.engine.judging.weight_distance import largest_difference


def saved(file: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, file)
    return file


def test_the_tensor_that_is_farthest_is_named(tmp_path: Path) -> None:
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([1.0], dtype=torch.bfloat16)
    one = saved(tmp_path / "one", a=a, b=b, empty=torch.zeros(0))
    assert largest_difference(one, one) == ("", 0.0)
    other = saved(tmp_path / "other", a=a + torch.tensor([[0.0, -0.25]]), b=b + 0.125, empty=torch.zeros(0))
    assert largest_difference(one, other) == ("a", 0.25)


def test_nan_is_the_largest_difference(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", a=torch.tensor([1.0]), b=torch.tensor([1.0]))
    other = saved(tmp_path / "other", a=torch.tensor([math.nan]), b=torch.tensor([9.0]))
    assert largest_difference(one, other) == ("a", math.inf)


@pytest.mark.parametrize("other", [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}])
def test_other_names_or_shapes_cannot_be_compared(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    one = saved(tmp_path / "one", a=torch.zeros(2))
    assert largest_difference(one, saved(tmp_path / "other", **other)) is None
