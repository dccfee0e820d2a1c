"""An MLflow server with its runs and its registry, for the operations on finished models."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_ft.candidacy import Contender
from mlflow_ft.tracking import contenders, copies, curves, models, run_list
from mlflow_ft.tracking.curves import Curves
from mlflow_ft.tracking.promotion import Ledger
from mlflow_ft.tracking.server import connect, every, told
from mlflow_ft.tracking.votes import VoteStore

LONGEST_TAG = 5000


class Store:
    """A tracking server and its registry. Every method raises TrackingError if the server does not answer."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, uri: str = "") -> Store:
        """The store at `uri`, or the one that MLFLOW_TRACKING_URI names.

        Raises:
            TrackingError: nothing answers there, or it is not an MLflow server.
        """
        return cls(connect(uri or None))

    # --- runs

    def run(self, run_id: str) -> Run:
        """The run with its tags, parameters and latest metrics."""
        with told(f"read the run {run_id}"):
            return self._client.get_run(run_id)

    def runs_with(self, tags: Mapping[str, str]) -> list[Run]:
        """The runs of all experiments that have these tags, the latest first."""
        condition = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        with told("look for runs"):
            experiments = every(lambda token: self._client.search_experiments(page_token=token))
            ids = [experiment.experiment_id for experiment in experiments]
            order = ["attributes.start_time DESC"]
            return list(every(lambda token: self._client.search_runs(ids, condition, order_by=order, page_token=token)))

    def curves(self, run: Run, *, prefixes: Collection[str]) -> Curves:
        """The whole history of every metric whose name begins with one of the prefixes."""
        with told(f"read the metrics of run {run.info.run_id}"):
            return curves.recorded(self._client, run, prefixes=prefixes)

    def list_scores(self, run: Run, metrics: Sequence[str]) -> None:
        """Show these metrics in the view "Scores" of the run's experiment, the most important first."""
        run_list.add(self._client, run.info.experiment_id, metrics)

    def experiment_name(self, run: Run) -> str:
        """The name of the run's experiment."""
        with told(f"read the experiment of run {run.info.run_id}"):
            return str(self._client.get_experiment(run.info.experiment_id).name)

    def logged_model(self, run: Run, name: str) -> str | None:
        """The URI of the latest model of this name that a run logged; None if there is none."""
        condition = f"source_run_id='{run.info.run_id}' AND name='{name}'"
        with told(f"read the logged models of run {run.info.run_id}"):
            models = self._client.search_logged_models([run.info.experiment_id], filter_string=condition)
        return f"models:/{models[0].model_id}" if models else None

    def read(self, run_id: str, path: str) -> Any:
        """The content of a JSON artifact, or the text of any other; None if the run has no such artifact."""
        return contenders.read(self._client, run_id, path)

    def fetch(self, run_id: str, path: str, folder: Path) -> Path | None:
        """Download an artifact to `folder`; None if the run has no such artifact."""
        try:
            return Path(self._client.download_artifacts(run_id, path, str(folder)))
        except (MlflowException, OSError):
            return None

    def write_text(self, run_ids: Iterable[str], text: str, path: str) -> None:
        """Write a text as the artifact `path` of each run."""
        for run_id in run_ids:
            with told(f"write {path} to run {run_id}"):
                self._client.log_text(run_id, text, path)

    def add_files(self, run_id: str, folder: Path, path: str, metrics: Mapping[str, float]) -> str:
        """Copy a folder into the artifacts of a run, with the metrics that belong to it, and return its URI."""
        with told(f"write {path} to run {run_id}"):
            self._client.log_artifacts(run_id, str(folder), path)
            for key, value in metrics.items():
                self._client.log_metric(run_id, key, value)
        return f"runs:/{run_id}/{path}"

    def votes(self, run: Run) -> VoteStore:
        """The votes of people that a run has."""
        return VoteStore(self._client, run_id=run.info.run_id, experiment_id=run.info.experiment_id)

    # --- the registry

    def version(self, name: str, which: str) -> ModelVersion:
        """A version by its number or by an alias.

        Raises:
            ModelError: the registry has no such model, version or alias.
        """
        return contenders.find_version(self._client, name, which)

    def version_at(self, uri: str) -> ModelVersion | None:
        """The version that `models:/NAME/3` names; None for any other URI.

        Raises:
            ModelError: the registry has no such version.
        """
        return contenders.version_of(self._client, uri)

    def versions(self, name: str) -> set[int]:
        """The numbers of the versions of a registered model.

        Raises:
            ModelError: the registry has no such model.
        """
        self.check_model(name)
        return contenders.numbers(self._client, name)

    def check_model(self, name: str) -> None:
        """Raise ModelError if the registry has no model of this name."""
        contenders.find_model(self._client, name)

    def contender(self, version: ModelVersion, *, elsewhere: Store | None = None) -> Contender:
        """The version with the evidence that its run recorded; a copy's run is also looked up `elsewhere`."""
        return contenders.contender(self._client, version, elsewhere=elsewhere._client if elsewhere else None)

    def ledger(self, name: str, alias: str) -> Ledger:
        """The moves of an alias.

        Raises:
            ConfigError: MLflow does not accept such an alias.
        """
        return Ledger(self._client, name, alias)

    def ensure_model(self, name: str) -> None:
        """Create the registered model unless it exists."""
        with told(f"create the registered model {name}"):
            models.ensure_registered_model(self._client, name)

    def tag_version(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags on a version, each cut to the length that MLflow stores."""
        with told(f"tag {name} version {version}"):
            for key, value in tags.items():
                self._client.set_model_version_tag(name, str(version), key, value[:LONGEST_TAG])

    def copy(self, name: str, version: int, *, to: str, store: Store) -> int:
        """Copy a version's files to the registered model `to` of a store, and return the number of the copy.

        Raises:
            RefusedError: the files differ from those that were packaged, or changed on the way.
        """
        original = self._client.get_model_version(name, str(version))
        return copies.copy_version(self._client, original, to=to, client=store._client)

    def weights(self, name: str, version: int) -> str:
        """The digest of a version's weights, by its manifest; "" if it has none. See `manifest.weights_digest`."""
        return copies.weights(self._client, name, version)

    def check_files(self, name: str, version: int) -> None:
        """Raise RefusedError if the files of a version are gone, because its model was deleted."""
        copies.check_files(self._client, name, version)

    def download(self, name: str, version: int, folder: Path) -> Path:
        """Download the files of a version to a folder inside `folder`.

        Raises:
            RefusedError: they are gone.
        """
        return copies.download(self._client, name, version, folder)
