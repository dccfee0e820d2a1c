"""A version copied as files, on disk and through a real server, and loaded from the copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import RefusedError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import ModelToLog, copies, open_run, write_manifest
from mlflow_ft.tracking.copies import copy_version
from tests.tracking.conftest import Server

REQUEST = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0.0}


def registered(client: MlflowClient, config: Config, plugins: Plugins, echo: dict[str, Any]) -> Any:
    """A version of ours: its folder `model` has a manifest."""
    folder = echo["artifacts"]["weights"]
    write_manifest(folder)
    artifacts = echo["artifacts"] | {"model": folder}
    with open_run(config.run, plugins=plugins) as run:
        model_id = run.log_model(ModelToLog(**echo | {"artifacts": artifacts}))
        tags = {"mlflow_ft.run_id": run.run_id, "gate": "passed", "mlflow_ft.parity.kl_mean": "0.001"}
        tags |= {"mlflow_ft.plugins": "x" * 6000}
        number = run.register(
            name="staging.chat", model_id=model_id, tags=tags, alias="candidate", description="# What it is"
        )
    return client.get_model_version("staging.chat", str(number))


def check(client: MlflowClient, version: Any) -> None:
    """Copy, delete the original, and query the copy."""
    number = copy_version(client, version, to="prod.chat", client=client)
    copied = client.get_model_version("prod.chat", str(number))
    assert copied.description == "# What it is"
    tags = copied.tags
    assert tags["mlflow_ft.plugins"] == "x" * 5000
    assert tags["mlflow_ft.copied_from"] == "models:/staging.chat/1"
    assert tags["mlflow_ft.copied_from_model_id"] == version.tags["mlflow_ft.model_id"] != tags["mlflow_ft.model_id"]
    assert tags["mlflow_ft.parity.kl_mean"] == "0.001"
    assert "gate" not in tags
    client.delete_model_version("staging.chat", "1")
    client.delete_logged_model(version.tags["mlflow_ft.model_id"])
    answer = mlflow.pyfunc.load_model(f"models:/prod.chat/{number}").predict(REQUEST)
    assert answer["choices"][0]["message"]["content"] == "hello hi 5 0.0"


def test_a_copy_is_whole_when_the_first_is_gone(
    client: MlflowClient, config: Config, plugins: Plugins, echo: dict[str, Any]
) -> None:
    version = registered(client, config, plugins, echo)
    first = Path(client.get_model_version_download_uri("staging.chat", "1"))
    number = copy_version(client, version, to="kept.chat", client=client)
    check(client, version)
    shutil.rmtree(first)  # as `mlflow gc` does
    answer = mlflow.pyfunc.load_model(f"models:/kept.chat/{number}").predict(REQUEST)
    assert answer["object"] == "chat.completion"


def test_a_copy_over_a_server(server: Server, config: Config, plugins: Plugins, echo: dict[str, Any]) -> None:
    client = MlflowClient(server.uri)
    check(client, registered(client, config, plugins, echo))


def test_a_copy_that_differs_is_not_registered(
    client: MlflowClient, config: Config, plugins: Plugins, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registered(client, config, plugins, echo)
    upload = MlflowClient.log_model_artifacts

    def loses_a_file(self: MlflowClient, model_id: str, local_dir: str, *more: Any) -> None:
        upload(self, model_id, local_dir, *more)
        (Path(self.get_logged_model(model_id).artifact_location) / "MLmodel").write_text("cut")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", loses_a_file)
    with pytest.raises(RefusedError, match="the copy differs from the original") as error:
        copy_version(client, version, to="prod.chat", client=client)
    assert [problem.place for problem in error.value.problems] == ["MLmodel"]
    assert not client.search_registered_models("name='prod.chat'")
    copied = client.search_logged_models([client.get_experiment_by_name(copies.EXPERIMENT).experiment_id])
    assert [str(model.status) for model in copied] == ["FAILED"]
