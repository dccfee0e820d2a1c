"""Which files and which rows a model version was trained on, and how to recognise them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.recognising.recognition import Recogniser
from mlflow_ft.data.sources import Source
from mlflow_ft.errors import DataError
from mlflow_ft.hashes import row_hash
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row
from mlflow_ft.values import Data

if TYPE_CHECKING:
    pass


def described(data: Data, sides: Mapping[str, tuple[Iterable[Source], Mapping[str, Any]]]) -> dict[str, Any]:
    """The sources with the hashes of their files, and the parts of the fingerprint, as JSON."""
    record: dict[str, Any] = {"fingerprint": data.fingerprint, "format": data.format}
    for name, (opened, parts) in sides.items():
        record[name] = {
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
    return record


def hashes_of(source: Source, *, plugins: Plugins, registry: Registry) -> frozenset[bytes]:
    """The hashes of a source's rows as they are read for training."""
    with suppress(DataError):  # rows of no known format have hashes too
        source = Recogniser(settings=source.settings, plugins=plugins, registry=registry).understand(source).source
    return frozenset(row_hash(row.values) for row in source.rows() if isinstance(row, Row))
