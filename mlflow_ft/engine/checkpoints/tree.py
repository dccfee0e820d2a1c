"""Nested state as JSON and tensors, without pickle: optimizer state, generators, metrics, callbacks.

A tree is made of dicts, lists, tuples, deques, numbers, texts, None, tensors and numpy arrays. It is
read back as it was, bit for bit; a deque is read as a list.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TENSOR, TUPLE, ITEMS, NUMBER, ARRAY = "__tensor__", "__tuple__", "__items__", "__number__", "__array__"
PLAIN = (bool, int, str, type(None))


def taken_apart(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The tree as JSON; its tensors are added to `tensors`, named by their path.

    Raises:
        TypeError: a value is of another type.
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach()
        return {TENSOR: path}
    if isinstance(tree, np.ndarray):
        return {ARRAY: tree.tolist(), "dtype": str(tree.dtype)}
    if isinstance(tree, np.generic):
        return taken_apart(tree.item(), tensors, path)
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {NUMBER: repr(tree)}
    if isinstance(tree, PLAIN):
        return tree
    if isinstance(tree, Mapping):
        return _dict_apart(tree, tensors, path)
    if isinstance(tree, list | tuple | deque):
        values = [taken_apart(value, tensors, f"{path}/{index}") for index, value in enumerate(tree)]
        return {TUPLE: values} if isinstance(tree, tuple) else values
    raise TypeError(f"{path or 'the state'} is a {type(tree).__name__}, which a checkpoint cannot hold")


def _dict_apart(tree: Mapping[Any, Any], tensors: dict[str, Tensor], path: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("__") for key in tree):
        return {key: taken_apart(value, tensors, f"{path}/{key}") for key, value in tree.items()}
    return {
        ITEMS: [
            [taken_apart(key, tensors, f"{path}/key"), taken_apart(value, tensors, f"{path}/{key}")]
            for key, value in tree.items()
        ]
    }


def put_together(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree of which `taken_apart` returned `content` and `tensors`."""
    if isinstance(content, list):
        return [put_together(value, tensors) for value in content]
    if not isinstance(content, dict):
        return content
    if TENSOR in content:
        return tensors[content[TENSOR]]
    if TUPLE in content:
        return tuple(put_together(value, tensors) for value in content[TUPLE])
    if ITEMS in content:
        return {put_together(key, tensors): put_together(value, tensors) for key, value in content[ITEMS]}
    if NUMBER in content:
        return float(content[NUMBER])
    if ARRAY in content:
        return np.array(content[ARRAY], dtype=content["dtype"])
    return {key: put_together(value, tensors) for key, value in content.items()}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree with its path; an empty dict or list is a value too."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple | deque) and tree:
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}/{index}")
    else:
        yield path, tree


def differences(saved: Any, restored: Any) -> list[str]:
    """The paths at which two trees differ in one bit or more; NaN equals NaN."""
    before, after = dict(leaves(saved)), dict(leaves(restored))
    names = [*before, *(path for path in after if path not in before)]
    return [path for path in names if path not in before or path not in after or not _same(before[path], after[path])]


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if before.dtype != after.dtype or before.shape != after.shape:
            return False
        return torch.equal(bits(before), bits(after))
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return bool(np.array_equal(before, after))
    if isinstance(before, Mapping | list | tuple | deque) and isinstance(after, Mapping | list | tuple | deque):
        return not before and not after
    return bool(before == after or (before != before and after != after))


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: uint8, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
