"""A folder that is there whole or not at all: written beside its place, brought to the disk, and renamed at the end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow_ft.errors import ConfigError, RefusedError

RECORD = "merge.json"
KEY = "fingerprint"


def finished(out: Path, key: str, *, record: str = RECORD) -> dict[str, Any] | None:
    """What the file `record` of a folder says, where it holds what is asked for; None where there is nothing yet.

    Raises:
        ConfigError: the folder holds something else. RefusedError: it was changed since.
    """
    from mlflow_ft.tracking import verify_manifest

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = _read(out / record)
    if found.get(KEY) != key:
        raise ConfigError(f"{out} is there and holds something else", hint="name another folder, or remove it")
    verify_manifest(out)
    return found


def place(out: Path, key: str) -> Path:
    """Where a folder is written before it is whole."""
    return out.with_name(f"{out.name}.partial-{key[:12]}")


@contextmanager
def writing(out: Path, key: str) -> Iterator[Path]:
    """The folder to write into, beside `out`; when the block is done, it takes the place of `out`.

    What a stopped process left for the same `key` is there again.

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
        for path in (*partial.rglob("*"), partial):
            _to_disk(path)
        partial.rename(out)  # over an empty folder, too, and over nothing else
        _to_disk(out.parent)
    finally:
        os.close(lock)


def write_record(folder: Path, facts: Mapping[str, Any], *, record: str = RECORD) -> None:
    """Say in the file `record` what the folder holds; `fingerprint` recognises it."""
    (folder / record).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
