"""The metrics of an open run: journalled in its folder, and delivered from there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from mlflow import MlflowClient

from mlflow_ft.tracking import logged_points
from mlflow_ft.tracking.delivery import JOURNAL_FILE
from mlflow_ft.tracking.journal import Journal
from mlflow_ft.tracking.metrics import clean_key, metric_entries, sender
from mlflow_ft.values import Split


class RunMetrics:
    """The journal of one run's metrics, once it is open."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._file = Path(JOURNAL_FILE)
        self._journal: Journal | None = None
        self._logged: Mapping[str, Collection[int]] = {}
        self._undelivered = 0

    def open(self, folder: Path) -> None:
        """Keep the metrics in `folder` from now on; what an earlier process left there is sent first."""
        self._file = folder / JOURNAL_FILE
        self._journal = Journal(self._file, sender(tracking_uri=self._client.tracking_uri, run_id=self._run_id))

    def go_on(self) -> None:
        """From now on, leave out points that the run's curves have already."""
        if self._journal is not None:
            self._logged = logged_points.of_run(self._client, self._run_id, self._file)

    def log(
        self, values: Mapping[str, float], *, step: int, moment: int, model_id: str | None, dataset: Split | None
    ) -> None:
        """Journal values with one timestamp (milliseconds); those linked to a model are always new."""
        if self._journal is None:
            raise RuntimeError("call open_journal before the first metric")
        logged = {key for key in values if step in self._logged.get(clean_key(key), ())} if not model_id else ()
        new = {key: value for key, value in values.items() if key not in logged}
        self._journal.append(*metric_entries(new, step=step, moment=moment, model_id=model_id, dataset=dataset))

    def flush(self, timeout: float) -> bool:
        """Wait until everything is delivered; return False after `timeout` seconds without progress."""
        return self._undelivered == 0 if self._journal is None else self._journal.flush(timeout)

    def close(self, timeout: float) -> int:
        """Deliver what is left and return how many entries could not be delivered."""
        journal, self._journal = self._journal, None
        self._undelivered = journal.close(timeout) if journal else 0
        return self._undelivered
