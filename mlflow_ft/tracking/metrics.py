"""Metrics as journal entries, and their delivery to MLflow."""

from __future__ import annotations

import logging
import math
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import mlflow.entities
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ft.tracking import inputs
from mlflow_ft.tracking.faults import REMEDIES, Fault, fault_of, words
from mlflow_ft.tracking.journal import Entry, SendRefusedError
from mlflow_ft.tracking.server import answers
from mlflow_ft.values import Split

LONGEST_KEY = 250
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One point of a curve, or a single score."""

    key: str
    value: float
    step: int
    timestamp: int
    """Milliseconds since the epoch."""
    model_id: str | None = None
    """The LoggedModel that the value is about."""
    dataset_name: str | None = None
    dataset_digest: str | None = None

    def entry(self) -> Entry:
        return asdict(self)


def clean_key(key: str) -> str:
    """The key as MLflow allows it: letters, digits, `_ - . : /` and space, no empty or dotted path parts.

    >>> clean_key("eval/exact match (%)")
    'eval/exact match ___'
    """
    key = re.sub(r"[^\w\-./: ]", "_", key, flags=re.ASCII)[:LONGEST_KEY]
    parts = [part for part in posixpath.normpath(key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def clean_value(value: float) -> float:
    """A float. An infinity becomes NaN: MLflow would store 1.8e308, which ruins charts and wins every ranking."""
    value = float(value)
    return math.nan if math.isinf(value) else value


def metric_entries(
    values: Mapping[str, float],
    *,
    step: int,
    moment: int,
    model_id: str | None = None,
    dataset: Split | None = None,
) -> list[Entry]:
    """A journal entry for each value, all with one timestamp (milliseconds)."""
    return [
        Metric(
            key=clean_key(key),
            value=clean_value(value),
            step=step,
            timestamp=moment,
            model_id=model_id,
            dataset_name=inputs.dataset_name(dataset) if dataset else None,
            dataset_digest=inputs.dataset_digest(dataset) if dataset else None,
        ).entry()
        for key, value in values.items()
    ]


def sender(*, tracking_uri: str, run_id: str) -> Callable[[Sequence[Entry]], None]:
    """Return the function that sends a journal's batch to the run; sending a batch twice changes nothing.

    It checks an HTTP server's health first: MLflow's own retries would block the thread for minutes. It raises
    SendRefusedError on 401 and 403.
    """

    def send(batch: Sequence[Entry]) -> None:
        if not answers(tracking_uri):
            raise ConnectionError(f"no tracking server answers at {tracking_uri}")
        client = MlflowClient(tracking_uri)
        try:
            client.log_batch(run_id, metrics=[_entity(entry) for entry in batch])
        except MlflowException as error:
            if fault_of(error) is Fault.CREDENTIALS:
                raise SendRefusedError(f"{words(error)}; {REMEDIES[Fault.CREDENTIALS]}") from error
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            _send_one_by_one(client, run_id, batch)

    return send


def _send_one_by_one(client: MlflowClient, run_id: str, batch: Sequence[Entry]) -> None:
    """Send entries separately, so that a value which the server never accepts does not hold up the others."""
    for entry in batch:
        try:
            client.log_batch(run_id, metrics=[_entity(entry)])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            log.warning("skipping %s, which the tracking server refuses: %s", entry, error)


def _entity(entry: Entry) -> mlflow.entities.Metric:
    return mlflow.entities.Metric(run_id=None, **entry)
