"""The cache of prepared data, by key; an entry is either complete or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

MOST_BYTES = 20 * 2**30
"""Limit of the cache; the least recently used entries are removed first."""


def cache_dir() -> Path:
    """Where models and prepared data are kept: MLFLOW_FT_CACHE, else ~/.cache/mlflow-ft."""
    return Path(os.environ.get("MLFLOW_FT_CACHE") or Path.home() / ".cache" / "mlflow-ft")


def data_dir() -> Path:
    """Where prepared data is kept: MLFLOW_FT_DATA_CACHE, else `data` in the cache."""
    return Path(os.environ.get("MLFLOW_FT_DATA_CACHE") or cache_dir() / "data")


def find_or_make(key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The entry's folder, and whether it existed; otherwise `make` fills it.

    A new entry is filled in a temporary folder and then renamed: a run that is killed leaves no entry, and two runs
    that prepare the same data at once both get a complete one.
    """
    folder = data_dir() / key
    if folder.is_dir():
        os.utime(folder)
        return folder, True
    data_dir().mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=data_dir()))
    try:
        make(aside)
        try:
            aside.rename(folder)
        except OSError:  # another process finished first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    prune(keep=folder)
    return folder, False


def prune(*, keep: Path, most_bytes: int = MOST_BYTES) -> None:
    """Remove the least recently used entries until the rest fits. A run that is reading one can continue."""
    entries = [entry for entry in data_dir().iterdir() if entry.is_dir() and entry != keep]
    left = most_bytes - _size(keep)
    for entry in sorted(entries, key=lambda folder: folder.stat().st_mtime, reverse=True):
        left -= _size(entry)
        if left < 0:
            shutil.rmtree(entry, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
