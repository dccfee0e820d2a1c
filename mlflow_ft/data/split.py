"""Which rows are held out, and a digest that says exactly what was trained on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence

from mlflow_ft.errors import DataError
from mlflow_ft.job import Encoded
from mlflow_ft.records import Example

DIGEST_LENGTH = 32
"""Hex digits; MLflow refuses digests over 36 characters."""


def hold_out(count: int, *, test_size: float, seed: int) -> tuple[list[int], list[int]]:
    """Choose the held-out rows at random under a seed; returns (train, eval), each in the source's order.

    Raises:
        DataError: nothing would be left on one of the sides.
    """
    held = round(count * test_size) if test_size < 1 else int(test_size)
    held = max(held, 1)
    if held >= count:
        raise DataError(
            f"data.test_size {test_size:g} holds out {held} of {count} rows, which leaves nothing to train on",
            hint="lower data.test_size, add rows, or give the held-out rows with data.eval_path",
        )
    chosen = set(random.Random(seed).sample(range(count), held))
    return [i for i in range(count) if i not in chosen], sorted(chosen)


def digest(examples: Sequence[Example], encoded: Sequence[Encoded], *, template: str) -> str:
    """Sha256, cut to 32 digits, over every turn, the template, every token and every label, in order."""
    found = hashlib.sha256(template.encode())
    for example, row in zip(examples, encoded, strict=True):
        content = json.dumps([list(example.messages), example.tools], sort_keys=True, default=str)
        found.update(content.encode("utf-8", "surrogatepass"))
        found.update(repr((row.input_ids, row.labels)).encode())
    return found.hexdigest()[:DIGEST_LENGTH]
