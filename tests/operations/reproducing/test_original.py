"""What a reproduction takes from the original's record."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.explain import to_yaml
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations import recorded_run
from mlflow_ft.operations.reproducing import original
from mlflow_ft.registry import Registry
from mlflow_ft.tracking import Store
from tests.tracking.conftest import client as client
from tests.tracking.conftest import store as store

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
REGISTRY = Registry(LOADED)


def recorded(client: MlflowClient, *arguments: str, tags: dict[str, str] | None = None) -> Run:
    """A run with the record of a configuration."""
    run = client.create_run("0", tags=tags)
    client.log_text(run.info.run_id, to_yaml(asked(arguments, LOADED)), "config.yaml")
    return client.get_run(run.info.run_id)


def test_a_recorded_default_does_not_count_as_given(client: MlflowClient) -> None:
    """An adapter names its own base, and a method refuses given settings of others."""
    run = recorded(client, "lora", "--init_from", "models:/x/1", "--learning_rate", "1e-5")
    config = recorded_run.config(Store(client), run.info.run_id, REGISTRY)
    assert config.flat() == asked(["lora", "--init_from", "models:/x/1", "--learning_rate", "1e-5"], LOADED).flat()
    assert {"model.init_from", "training.learning_rate"} <= config.origins.keys()
    assert not {"model.name", "objective.beta", "rollout.num_generations"} & config.origins.keys()


def test_a_run_whose_training_has_not_ended_is_refused(client: MlflowClient) -> None:
    run = recorded(client, "lora")
    with pytest.raises(ConfigError, match="its training has not ended"):
        original.find(run.info.run_id, REGISTRY)


def test_the_new_run_is_beside_the_original_but_its_files_are_here(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded(client, "lora", "--training.upload_checkpoints", "true", "--training.log_checkpoints", "true")
    client.log_metric(run.info.run_id, "train/steps", 3)
    client.log_metric(run.info.run_id, "train/loss", 0.1, step=1)
    client.log_metric(run.info.run_id, "system/cpu", 0.1, step=1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    earlier = original.find(run.info.run_id, REGISTRY)
    assert earlier.config.run.experiment == "Default"
    assert earlier.config.run.name == f"{run.info.run_name}-reproduced"
    assert earlier.config.run.output_dir == tmp_path / "here" / "outputs"
    assert not (earlier.config.training.upload_checkpoints)
    assert not (earlier.config.training.log_checkpoints)
    assert earlier.curves == {"train/loss": {1: 0.1}, "train/steps": {0: 3.0}}
    assert earlier.weights is None
    elsewhere = original.find(run.info.run_id, REGISTRY, output_dir=Path("other"))
    assert elsewhere.config.run.output_dir == tmp_path / "here" / "other"


def test_commits_and_versions_are_pinned(client: MlflowClient) -> None:
    """A branch or an alias may have moved since."""
    started = asked(["lora", "--init_from", "models:/x@champion"], LOADED)
    adapter = {
        "mlflow_ft.start": "models:/x/3 sha256:abc",
        "mlflow_ft.base_origin": "Hub, with the adapter models:/x/3",
    }
    whole = {"mlflow_ft.base_model": "models:/x/4", "mlflow_ft.base_origin": "models:/x/4"}
    assert recorded_run.pinned(started, adapter).model.init_from == "models:/x/3"
    assert recorded_run.pinned(started, whole).model.init_from == "models:/x/4"
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = asked(["lora", "--model", "owner/name"], LOADED)
    assert recorded_run.pinned(hub, {"mlflow_ft.base_revision": commit}).model.revision == commit
    assert recorded_run.pinned(hub, {"mlflow_ft.base_revision": "sha256:abc"}).model.revision is None


def test_relative_paths_begin_where_the_run_was_started(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    started = client.get_run(client.create_run("0", tags={"mlflow.mlflow_ft.cwd": str(tmp_path / "there")}).info.run_id)
    with recorded_run.working_folder(started):
        assert Path.cwd() == tmp_path / "there"
        assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert (Path.cwd(), os.environ["MLFLOW_TRACKING_URI"]) == (tmp_path, "sqlite:///mlflow.db")
    gone = client.get_run(client.create_run("0", tags={"mlflow.mlflow_ft.cwd": str(tmp_path / "gone")}).info.run_id)
    with recorded_run.working_folder(gone):
        assert Path.cwd() == tmp_path
