"""Replies on disk, by the hash of everything that was asked, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.data.cache import cache_dir

VERSION = 1
"""Part of every key; raised when a reply would be read differently."""


class Cache:
    """A file for each reply. Only the reply is kept, never the question or a key."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_dir() / "judge"

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The reply that was kept, or None; a file that cannot be read counts as absent."""
        try:
            kept = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) and isinstance(kept.get("text"), str) else None

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply; on a full or read-only disk it is not kept."""
        file = self._file(key)
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(json.dumps(reply, sort_keys=True), encoding="utf-8")
            draft.replace(file)
        except OSError:
            draft.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def key_of(asked: Mapping[str, Any]) -> str:
    """sha256 over a request: judge, messages and sampling."""
    return hashlib.sha256(json.dumps({"version": VERSION, **asked}, sort_keys=True).encode()).hexdigest()
