"""Which files, which rows: what a model version answers about its data, and how it is found again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.fingerprint import row_hash
from mlflow_ft.data.recognising.recognition import Recogniser
from mlflow_ft.data.sources import Source
from mlflow_ft.errors import DataError
from mlflow_ft.job import Data
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row

if TYPE_CHECKING:
    import numpy

ROWS = "rows.parquet"
"""Artifact with side, file, line, turn and hash of every row; 16 bytes of it tell a row again in any file."""


def described(data: Data, sides: Mapping[str, tuple[Iterable[Source], Mapping[str, Any]]]) -> dict[str, Any]:
    """The sources with the hashes of their files, and what the fingerprint is over, as JSON."""
    found: dict[str, Any] = {"fingerprint": data.fingerprint, "format": data.format}
    for name, (opened, parts) in sides.items():
        found[name] = {
            "digest": data.train.digest if name == "train" else data.eval.digest,
            "rows": (data.train if name == "train" else data.eval).counts["rows"],
            "sources": [
                {
                    "asked": source.asked,
                    "uri": source.uri,
                    "files": [{"name": file.name, "sha256": file.sha256} for file in source.files],
                }
                for source in opened
            ],
            "prepared_by": dict(parts),
        }
    return found


def write_rows(sides: Mapping[str, tuple[Any, tuple[str, ...], numpy.ndarray[Any, Any]]], folder: Path) -> Path:
    """Write where every row of each side stands, and its hash, as one small Parquet file; returns the file.

    `turn` is the one that is learned, from 1, where `data.turns` divides rows, else 0; the hash is that of the row.
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
    found: dict[str, set[bytes]] = {}
    for side, row in zip(table.column("side").to_pylist(), table.column("hash").to_pylist(), strict=True):
        found.setdefault(side, set()).add(row)
    return found


def hashes_of(source: Source, *, plugins: Plugins, registry: Registry) -> frozenset[bytes]:
    """The hashes of the rows of a source, as they are read for a training."""
    with suppress(DataError):  # rows of no known format have hashes, too
        source = Recogniser(settings=source.settings, plugins=plugins, registry=registry).understand(source).source
    return frozenset(row_hash(row.values) for row in source.rows() if isinstance(row, Row))
