"""A journal of finished files: one line each, written next to the folder once the file is on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mlflow_ft.hashes import file_hash

SUFFIX = ".journal"


class Journal:
    """The finished files of a folder that is being written; after a crash it says where to continue."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = _beside(folder)
        self._known = dict(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        if not self._file.is_file():
            return []
        entries = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                entries.append((str(entry["file"]), str(entry["sha256"])))
            except (ValueError, KeyError, TypeError):
                break  # a line cut off by a crash
        return entries

    def has(self, name: str) -> bool:
        """Whether the file was finished and has not changed since."""
        file = self._folder / name
        return name in self._known and file.is_file() and file_hash(file) == self._known[name]

    def add(self, name: str) -> None:
        """Record a finished file. The caller has flushed it to disk."""
        self._known[name] = file_hash(self._folder / name)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"file": name, "sha256": self._known[name]}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def clear(folder: Path) -> None:
    """Delete the journal of a folder."""
    _beside(folder).unlink(missing_ok=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(folder.name + SUFFIX)
