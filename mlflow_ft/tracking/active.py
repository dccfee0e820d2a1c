"""The open run: everything that a stage may log to MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft.config.explain import to_yaml
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ModelError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import (
    artifacts,
    created_once,
    environment,
    inputs,
    models,
    outbox,
    run_lock,
    system,
    tables,
)
from mlflow_ft.tracking.checkpoints import CheckpointUploads
from mlflow_ft.tracking.delivery import RunFile
from mlflow_ft.tracking.faults import UnacceptedError
from mlflow_ft.tracking.metrics import metric_entries
from mlflow_ft.tracking.models import ModelToLog
from mlflow_ft.tracking.outbox import Place
from mlflow_ft.tracking.requesting import Requests
from mlflow_ft.tracking.run_metrics import RunMetrics
from mlflow_ft.tracking.run_values import config_params, number_params, tag_values, with_tags
from mlflow_ft.tracking.server import page
from mlflow_ft.tracking.signals import StopSignals
from mlflow_ft.tracking.system import JournalledMonitor
from mlflow_ft.values import Split

EARLY = ("start", "config", "resume", "model", "data")
"""Stages before anything was spent: an expired credential or a full artifact store ends the run there."""
T = TypeVar("T")


class ActiveRun:
    """One MLflow run while it is open. Metrics never wait for the server; everything else waits, but not for ever.

    What a server that is away (`MLFLOW_FT_PATIENCE`) has not accepted is kept in the folder and delivered in order when
    it is back. What the run must get back (a model's id, a version's number) raises UndeliveredError instead: the rest
    is left to `mlflow-ft sync`. TrackingError: the request is wrong, or it was made before `open_journal`.
    """

    def __init__(
        self,
        *,
        run_id: str,
        experiment_id: str,
        tracking_uri: str,
        opened: Run | None = None,
        signals: StopSignals | None = None,
        resumed: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run_id = run_id
        self.experiment_id, self.tracking_uri = experiment_id, tracking_uri
        self.stage = "start"
        self.step = 0
        """The last step that a metric was logged for."""
        self.folder: Path | None = None
        self.client = MlflowClient(tracking_uri)
        self._signals = signals or StopSignals()
        self._resumed, self._clock, self._opened = resumed, clock, opened
        self._curves = RunMetrics(self.client, run_id)
        self._monitor: JournalledMonitor | None = None
        self._lock: BaseFileLock | None = None
        self._uploads: CheckpointUploads | None = None
        self._tags: dict[str, str] = {}
        place = Place(client=self.client, run_id=run_id, experiment_id=experiment_id, folder=Path())
        self._log_model = partial(models.log_model, self.client, run_id=run_id, experiment_id=experiment_id)
        self._requests = Requests(place, uri=tracking_uri, stopping=lambda: self.stopping, clock=clock)

    @property
    def unfinished(self) -> bool:
        """Whether stages are left to `mlflow-ft sync`, because the server did not accept a model or a version."""
        return self._requests.unfinished

    @property
    def url(self) -> str | None:
        """Address of the run in the UI; None for a store without a server."""
        return page(self.tracking_uri, self.experiment_id, self.run_id)

    # --- stopping

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT was received; training checks it between two steps."""
        return self._signals.received is not None

    def deferring_stop(self) -> AbstractContextManager[None]:
        """Inside the block, the first signal only sets `stopping`; leaving the block then raises StoppedError."""
        return self._signals.deferring()

    def begin(self, stage: str) -> None:
        """Name the stage for the tags of a failure; raises StoppedError if a signal's error was swallowed."""
        self.stage = stage
        self._requests.early = stage in EARLY
        self._signals.check()

    # --- metrics, through the journal

    def open_journal(self, folder: Path, *, continues: bool = True) -> None:
        """Keep this run's metrics in `folder` from now on; what an earlier process left there is sent first.

        `continues`: stages that need an answer of the server can be continued by `mlflow-ft sync`.

        Raises:
            TrackingError: another process is using the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = run_lock.acquired(folder, self.run_id)
        RunFile.opened(folder, self.run_id, self.tracking_uri, self.experiment_id).write(folder)
        self._curves.open(folder)
        self.folder = folder
        self._requests.open_outbox(folder, continues=continues)

    def continue_curves(self) -> None:
        """From now on, do not log points that the run's curves have already; call it after `open_journal`."""
        self._curves.go_on()

    def metric(self, key: str, value: float, **about: Any) -> None:
        """Journal one value; keywords as for `metrics`."""
        self.metrics({key: value}, **about)

    def metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        model_id: str | None = None,
        dataset: Split | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Journal values with one timestamp, without waiting for the server.

        Characters that MLflow does not allow in keys are replaced. NaN stays NaN; an infinity becomes NaN, because
        MLflow would store 1.8e308. `model_id` links the values to a LoggedModel, `dataset` to the rows they were
        computed on.
        """
        moment = int(self._clock() * 1000) if timestamp_ms is None else timestamp_ms
        self._curves.log(values, step=step, moment=moment, model_id=model_id, dataset=dataset)
        self.step = max(self.step, step)

    def flush(self, timeout: float) -> bool:
        """Wait until the journal is delivered; return False after `timeout` seconds without progress."""
        return self._curves.flush(timeout)

    def close(self, timeout: float, *, deliver: bool) -> tuple[int, int]:
        """Deliver the journal, wait for uploads, deliver the outbox, give up the folder; `open_run` does it at the end.

        Return how many metrics and how many other requests could not be delivered.
        """
        metrics = self._curves.close(timeout)
        if self._uploads is not None:
            self._uploads.close()
        others = self._requests.close(deliver=deliver)
        if self._lock:
            self._lock.release()
        return metrics, others

    def system_metrics(self) -> None:
        """Journal CPU, memory, disk, network and GPU every 10 s until the run closes (MLFLOW_SYSTEM_METRICS_*)."""
        if self._monitor is None:
            self._monitor = system.started(self.run_id, self._publish, resumed=self._resumed)

    def stop_system_metrics(self) -> None:
        """Journal the last sample; `open_run` calls this at its end."""
        monitor, self._monitor = self._monitor, None
        if monitor:
            monitor.end()

    def _publish(self, values: Mapping[str, float], step: int) -> None:
        self.metrics(values, step=step)

    # --- what the run is

    def read(self) -> Run:
        """The run as it is on the server; if that is away, as it was when it was opened, with the tags set since."""
        try:
            run = self._requests.ask("read the run", lambda: self.client.get_run(self.run_id))
        except UnacceptedError:
            if self._opened is None or self.folder is None:
                raise
            return with_tags(self._opened, self._tags)
        return with_tags(run, self._tags) if self._requests.waiting else run

    def log_config(self, config: Config, *, text: str | None = None) -> None:
        """Log every value as param `cfg.<path>`, and the whole config as `config.yaml`.

        Params cannot change: if a resumed run's value differs, tag `mlflow_ft.changed_config` records it.
        """
        new, changed = config_params(config, self.read().data.params)
        self._requests.put("log the config", outbox.params(new))
        if changed:
            self.set_tags({"mlflow_ft.changed_config": "; ".join(changed)})
        self.artifact_text(to_yaml(config) if text is None else text, "config.yaml")

    def params(self, values: Mapping[str, float]) -> None:
        """Log numbers that do not change while a run goes on; a param that the run has already stays as it is."""
        if new := number_params(values, self.read().data.params):
            self._requests.put("log the counts", outbox.params(new))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags in batches; a value over 8,000 characters is cut and marked."""
        values = tag_values(tags)
        self._tags |= values
        self._requests.put("set tags", outbox.tags(values))

    def log_environment(self, plugins: Plugins) -> None:
        """Log folder, git commit, code, package versions, plugins and machine, as tags and artifacts."""
        self.set_tags(environment.tags(plugins, folder=Path.cwd()))
        self.artifact_text(environment.plugin_table(plugins), "plugins.json")
        self.artifact_text(environment.packages(), "packages.txt")

    def log_inputs(self, splits: Sequence[Split], *, tags: Mapping[str, str] | None = None) -> None:
        """Log the splits as the run's dataset inputs; `tags` go on each of them."""
        self._requests.put("log the data sets", outbox.inputs([inputs.dataset_input(one, tags=tags) for one in splits]))

    # --- artifacts

    def artifact_text(self, text: str, path: str) -> None:
        """Write a text as the artifact `path`."""
        self._requests.put(f"log {path}", outbox.text(text, path))

    def artifact(self, file: Path, folder: str = "") -> None:
        """Copy a file or a whole folder into the artifacts under `folder`."""
        self._requests.put(f"log {file.name}", outbox.file(file, folder))

    def table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Write rows as one JSON file that MLflow's UI shows as a table; `path` ends in .json."""
        self.artifact_text(tables.table_json(rows), path)
        self.set_tags(tables.table_tag(self.read().data.tags, path))

    def upload_checkpoint(self, folder: Path, *, beside: Path | None = None) -> None:
        """Upload it in the background, once the metrics so far are delivered; others are removed but `beside`."""
        self._uploads = self._uploads or CheckpointUploads(self.tracking_uri, self.run_id, partial(self.flush, 60))
        self._uploads.put(folder, beside=beside)

    # --- models

    def log_model(self, model: ModelToLog) -> str:
        """Log a pyfunc model from code as an output of this run and return its model id."""
        return self._requests.must(f"log the model {model.name}", partial(self._log_model, model))

    def log_checkpoint(self, model: ModelToLog, metrics: Mapping[str, float], *, dataset: Split) -> None:
        """Log a model as `log_model` does and link metrics to it; training goes on if the server is away."""
        try:
            model_id = self._requests.ask(f"log the model {model.name}", partial(self._log_model, model))
        except UnacceptedError as error:
            linked = metric_entries(metrics, step=model.step, moment=int(self._clock() * 1000), dataset=dataset)
            self._requests.keep(outbox.model(model, linked), error)
        else:
            self.metrics(metrics, step=model.step, model_id=model_id, dataset=dataset)

    def needing(self, what: str, call: Callable[[], T]) -> T:
        """The answer of the server to a request that may be made twice; UndeliveredError if it is away."""
        return self._requests.must(what, call)

    def download_model(self, model_id: str, into: Path) -> Path:
        """Download a logged model into a new folder under `into`."""
        uri = f"models:/{model_id}"
        fetch = partial(artifacts.fetch, uri, error=ModelError, what="model", into=into)
        return self._requests.must(f"read {uri}", fetch)

    def nested_run(self, name: str, *, tags: Mapping[str, str] | None = None) -> str:
        """Create a nested run for another process to open, and return its id."""
        own = {"mlflow.parentRunId": self.run_id, "mlflow.runName": name, **(tags or {})}
        call = partial(created_once.nested_run, self.client, self.experiment_id, created_once.RunRequest(self.client))
        return self._requests.ask("create a nested run", partial(call, tags=own))

    def register(
        self, *, name: str, model_id: str, tags: Mapping[str, str], alias: str, description: str | None = None
    ) -> int:
        """Register a LoggedModel as the next version of `name`, move `alias` to it, return the version's number.

        Raises:
            RefusedError: the model is not READY or has no MLmodel file.
        """
        call = partial(models.register, self.client, name=name, model_id=model_id, run_id=self.run_id)
        return self._requests.must(f"register {name}", partial(call, tags=tags, alias=alias, description=description))

    def tag_version(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags on a registered model version."""
        for key, value in tags.items():
            call = partial(self.client.set_model_version_tag, name, str(version), key, value)
            self._requests.must(f"tag {name} version {version}", call)
