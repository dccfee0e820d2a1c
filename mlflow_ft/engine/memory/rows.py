"""The longest batch of prepared rows, as a setting has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.training import longest_batch
from mlflow_ft.values import Data


def longest(config: Config, data: Data, *, batch: int) -> dict[str, Any]:
    """The fields `batch`, `length` and `learned` of the setting for a batch of the longest training rows."""
    pairs = data.kind == "preference"
    rows = data.train.encoded.dataset(("input_ids", "labels", *(("rejected_ids",) if pairs else ())))
    lengths = longest_batch.row_lengths(rows)
    if lengths is None or not len(lengths):
        return {"batch": batch}
    chosen = np.argsort(-lengths, kind="stable")[:batch]
    length = int(lengths.max())
    if config.objective.packing:
        return {"batch": batch, "length": config.data.max_length}
    learned = sum(data.train.encoded[int(index)].supervised for index in chosen)
    return {"batch": len(chosen), "length": length, "learned": min(1.0, learned / (len(chosen) * length))}
