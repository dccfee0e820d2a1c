"""The registered versions and the rows that each was trained on."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import brief
from mlflow_ft.hashes import ROWS, read_hashes
from mlflow_ft.tracking.server import connect, every

PAGE = 1000
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VersionRows:
    """A registered version and the hashes of its training rows."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    rows: frozenset[bytes]


def versions_with_rows() -> Iterator[VersionRows]:
    """Every registered version whose run recorded its training rows, ordered by name and number."""
    client = connect()
    known: dict[str, frozenset[bytes]] = {}
    for version in sorted(_versions(client), key=lambda version: (version.name, int(version.version))):
        run_id = version.tags["mlflow_ft.run_id"]
        if run_id not in known:
            known[run_id] = _rows_of(client, run_id)
        aliases = client.get_registered_model(version.name).aliases
        named = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(version.version)))
        yield VersionRows(
            name=version.name, version=int(version.version), aliases=named, run_id=run_id, rows=known[run_id]
        )


def _versions(client: MlflowClient) -> Iterator[ModelVersion]:
    versions = every(lambda token: client.search_model_versions(max_results=PAGE, page_token=token))
    return (version for version in versions if "mlflow_ft.run_id" in version.tags)


def _rows_of(client: MlflowClient, run_id: str) -> frozenset[bytes]:
    """The hashes of a run's training rows; empty if the run or its record is gone."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(client.download_artifacts(run_id, f"data/{ROWS}", folder))
            return frozenset(read_hashes(file).get("train", ()))
        except (MlflowException, OSError) as error:
            log.warning("cannot read the training rows of run %s: %s", run_id, brief(error))
            return frozenset()
