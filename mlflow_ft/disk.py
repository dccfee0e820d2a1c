"""Files that survive a crash: synced to disk, and complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is complete or absent, whatever happens meanwhile."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=2, sort_keys=True), encoding="utf-8")
    sync(draft)
    draft.replace(file)
    sync(file.parent)
