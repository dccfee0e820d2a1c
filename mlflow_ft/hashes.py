"""Hashes of files and rows, and the file in which a run records the hashes of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
ROWS = "rows.parquet"
"""Artifact with side, file, line, turn and hash of every row; the 16-byte hash identifies a row in any file."""


def file_hash(file: Path) -> str:
    """The sha256 of a file, as hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_hash(files: Iterable[Path], *, within: Path) -> str:
    """The sha256 over the names, relative to the folder `within`, and the contents of files, in the given order.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(within).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """Canonical JSON: the same for equal values."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def row_hash(values: Mapping[str, Any]) -> bytes:
    """16 bytes over a row's columns as read: the same for the same row in another file, order or format."""
    return hashlib.blake2b(canonical(values), digest_size=16).digest()


def write_rows(sides: Mapping[str, tuple[Any, tuple[str, ...], numpy.ndarray[Any, Any]]], folder: Path) -> Path:
    """Write the place and the hash of every row of each side to one small Parquet file; returns the file.

    `turn` is the learned turn, from 1, where `data.turns` divides rows, else 0; the hash is that of the whole row.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for name, (table, files, indices) in sides.items():
        part = table.select(["file", "line", "turn", "hash"]).take(indices)
        file = pa.DictionaryArray.from_arrays(part.column("file").combine_chunks(), pa.array(files, pa.string()))
        tables.append(
            pa.table(
                {
                    "side": pa.array([name] * len(indices), pa.string()),
                    "file": file.cast(pa.string()),
                    "line": part.column("line"),
                    "turn": part.column("turn"),
                    "hash": part.column("hash"),
                }
            )
        )
    target = folder / ROWS
    parquet.write_table(pa.concat_tables(tables), target, compression="zstd")
    return target


def read_hashes(file: Path) -> dict[str, set[bytes]]:
    """The hashes of the rows of each side that `write_rows` wrote."""
    from pyarrow import parquet

    table = parquet.read_table(file, columns=["side", "hash"])
    hashes: dict[str, set[bytes]] = {}
    for side, row in zip(table.column("side").to_pylist(), table.column("hash").to_pylist(), strict=True):
        hashes.setdefault(side, set()).add(row)
    return hashes
