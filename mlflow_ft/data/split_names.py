"""The words in names of files and folders that stand for a split."""

from __future__ import annotations

import re
from pathlib import Path

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
