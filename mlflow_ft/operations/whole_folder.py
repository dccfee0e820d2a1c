"""A folder that is complete or absent: written under another name, synced to disk, and renamed at the end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow_ft import disk
from mlflow_ft.errors import ConfigError, RefusedError

RECORD = "merge.json"
KEY = "fingerprint"


def finished(out: Path, key: str, *, record: str = RECORD) -> dict[str, Any] | None:
    """The content of the folder's file `record`, if its key is `key`; None if there is nothing yet.

    Raises:
        ConfigError: the folder has other content. RefusedError: it was changed since.
    """
    from mlflow_ft.tracking import verify_manifest

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    content = _read(out / record)
    if content.get(KEY) != key:
        raise ConfigError(f"{out} exists and has other content", hint="name another folder, or remove it")
    verify_manifest(out)
    return content


def place(out: Path, key: str) -> Path:
    """The name of a folder until it is complete."""
    return out.with_name(f"{out.name}.partial-{key[:12]}")


@contextmanager
def writing(out: Path, key: str) -> Iterator[Path]:
    """The folder to write into, next to `out`; at the end of the block it is renamed to `out`.

    It may contain what an interrupted process wrote for the same `key`.

    Raises:
        RefusedError: another process is writing it.
    """
    partial = place(out, key)
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(f"another process is writing {partial}", hint="wait for it") from error
        yield partial
        disk.sync_folder(partial)
        partial.rename(out)  # replaces an empty folder, and nothing else
        disk.sync(out.parent)
    finally:
        os.close(lock)


def write_record(folder: Path, facts: Mapping[str, Any], *, record: str = RECORD) -> None:
    """Write into the file `record` what the folder contains, with the `fingerprint` to recognise it."""
    (folder / record).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
