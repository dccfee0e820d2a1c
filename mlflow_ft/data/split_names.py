"""The words in names of files and folders that stand for a split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mlflow_ft.errors import DataError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""By split, the words in a file's name that stand for it, as in `datasets`."""


def split_of(file: Path) -> str | None:
    """The split that a path within a folder names: `test` for `test/rows.jsonl` and `rows-test-00.parquet`.

    As in `datasets`, a folder's name overrides a file's name: `train/test-cases.jsonl` belongs to `train`.
    """
    for part in (*reversed(file.parts[:-1]), file.name):
        words = set(re.split(r"[\W\d_]+", part.lower()))
        for name, known in WORDS.items():
            if words & set(known):
                return name
    return None


def missing(asked: str, split: str, others: Iterable[str]) -> DataError:
    """The error about a folder that has no file of the requested split."""
    return DataError(
        f"the folder {asked!r} has no file of the split {split!r}",
        hint=f"its splits are {', '.join(others)}: name one with --data.split",
    )
