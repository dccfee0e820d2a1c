"""A real server behind a proxy that fails: nothing is lost, nothing exists twice."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import TrackingError, UndeliveredError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import ActiveRun, ModelToLog, deliver, open_run, requesting, take_up
from mlflow_ft.values import Split
from tests.faulty_proxy import FaultyProxy
from tests.rarely import some_always

API = "/api/"
MODELS = "/logged-models$"
VERSIONS = "/model-versions/create$"
UPLOADS = "/mlflow-artifacts/"


@pytest.fixture
def client(server: Any, proxy: FaultyProxy) -> MlflowClient:
    """A client of the server itself."""
    return MlflowClient(server.uri, registry_uri=server.uri)


def models_of(client: MlflowClient, run: ActiveRun) -> list[str]:
    condition = f"source_run_id = '{run.run_id}'"
    models = client.search_logged_models([run.experiment_id], filter_string=condition)
    assert {model.status for model in models} <= {LoggedModelStatus.READY}
    return [model.name for model in models]


def text(client: MlflowClient, run: ActiveRun, path: str) -> str:
    return Path(client.download_artifacts(run.run_id, path)).read_text()


# --- blips


@pytest.mark.parametrize("kind", some_always([500, 429, "cut", "lost", "slow"], 500, "lost"))
def test_a_short_failure_is_waited_for(
    proxy: FaultyProxy, client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path, kind: Any
) -> None:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        failure = proxy.fail(kind, f"{API}|{UPLOADS}", times=1)
        run.set_tags({"a": "tag"})
        run.artifact_text("a text", "a.txt")
        assert failure.hits == 1
    stored = client.get_run(run.run_id)
    assert (stored.data.tags["a"], stored.info.status) == ("tag", "FINISHED")
    assert text(client, run, "a.txt") == "a text"
    assert not any((tmp_path / "outputs" / "outbox" / "files").glob("*"))


def test_a_run_is_opened_once_if_the_answer_is_lost(
    proxy: FaultyProxy, client: MlflowClient, config: Config, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "opened once")
    settings = config.run.model_copy(update={"experiment": None})
    failure = proxy.fail("lost", "/runs/create$", times=1)
    with open_run(settings, plugins=plugins) as run:
        assert failure.hits == 1
        failure = proxy.fail("lost", "/runs/create$", times=1)
        child = run.nested_run("child")
        assert failure.hits == 1
    runs = client.search_runs([run.experiment_id])
    assert {found.info.run_id for found in runs} == {run.run_id, child}
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == run.run_id


@pytest.mark.parametrize("path", [MODELS, "/outputs$", "/logged-models/m-[^/]*$", f"{UPLOADS}.*MLmodel"])
@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_a_model_is_logged_once_whichever_request_fails(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    echo: dict[str, Any],
    path: str,
    kind: Any,
) -> None:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        failure = proxy.fail(kind, path, times=1)
        model_id = run.log_model(ModelToLog(**echo))
        assert failure.hits == 1
        assert models_of(client, run) == ["echo"]
        outputs = client.get_run(run.run_id).outputs.model_outputs
        assert [output.model_id for output in outputs] == [model_id]
        loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
        assert "weights" in str(loaded.metadata.flavors)


@pytest.mark.parametrize("path", [VERSIONS, "/registered-models/create$", "/registered-models/alias$"])
def test_a_version_is_registered_once_if_the_answer_is_lost(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    echo: dict[str, Any],
    path: str,
) -> None:
    name = f"once {path.strip('/$').replace('/', '-')}"
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        model_id = run.log_model(ModelToLog(**echo))
        failure = proxy.fail("lost", path, times=1)
        assert run.register(name=name, model_id=model_id, tags={"a": "tag"}, alias="candidate") == 1
        assert failure.hits == 1
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.tags == {"a": "tag", "mlflow_ft.model_id": model_id}
    assert client.get_model_version_by_alias(name, "candidate").version == version.version
    listed = client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    assert json.loads(listed) == [{"name": name, "version": 1}]


def test_other_weights_under_the_same_name_replace_the_model(
    client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path, echo: dict[str, Any]
) -> None:
    with open_run(config.run, plugins=plugins) as run:
        first = run.log_model(ModelToLog(**echo))
        assert run.log_model(ModelToLog(**echo)) == first
        (tmp_path / "package" / "model.safetensors").write_bytes(b"others")
        second = run.log_model(ModelToLog(**echo))
        assert models_of(client, run) == ["echo"]
        assert client.get_logged_model(second).status == LoggedModelStatus.READY


# --- outages


@pytest.mark.parametrize("kind", [503, "cut"])
def test_what_an_outage_held_up_arrives_in_order_when_the_server_is_back(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    split: Split,
    kind: Any,
) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file.txt"
    file.write_text("as it was")
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        proxy.fail(kind)
        run.log_config(config, text="method: sft\n")
        run.set_tags({"a": "first", "b": "only"})
        run.artifact(file, "files")
        run.artifact(file.parent, "folders")
        run.log_inputs([split], tags={"x": "y"})
        run.table([{"prompt": "p"}], "eval/one.json")
        run.table([{"prompt": "p"}], "eval/two.json")
        run.metric("loss", 0.5, step=1)
        assert run.read().data.tags["a"] == "first"
        file.unlink()
        proxy.heal()
        run.set_tags({"a": "second"})
        assert client.get_run(run.run_id).data.tags["a"] == "second"
        assert client.get_run(run.run_id).data.params["cfg.method"] == "sft"
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["b"] == "only"
    tables = json.loads(stored.data.tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in tables] == ["eval/one.json", "eval/two.json"]
    assert text(client, run, "files/file.txt") == text(client, run, "folders/folder/file.txt") == "as it was"
    assert text(client, run, "config.yaml") == "method: sft\n"
    (dataset,) = stored.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in dataset.tags} == {"mlflow.data.context": "train", "x": "y"}
    assert dataset.dataset.digest == split.digest
    assert not any((tmp_path / "outputs" / "outbox" / "files").glob("*"))


def test_a_run_that_ends_while_the_server_is_away_is_delivered_by_sync(
    proxy: FaultyProxy, client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path
) -> None:
    folder = tmp_path / "outputs"
    with (
        pytest.raises(UndeliveredError, match=r"1 metrics and 2 other entries and the state") as error,
        open_run(config.run, plugins=plugins) as run,
    ):
        run.open_journal(folder)
        proxy.fail("cut")
        run.set_tags({"a": "tag"})
        run.artifact_text("a text", "a.txt")
        run.metric("loss", 0.5, step=1)
    assert error.value.exit_code == 3
    assert f"mlflow-ft sync {folder}" in str(error.value)
    with pytest.raises(TrackingError, match="no tracking server answers"):
        deliver(folder)

    proxy.heal()
    failure = proxy.fail("lost", UPLOADS, times=1)
    with pytest.raises(UndeliveredError, match=r"1 entries of .*outbox did not reach"):
        deliver(folder)
    assert failure.hits == 1
    assert deliver(folder) == 1
    assert deliver(folder) == 0
    assert take_up(folder) == ""
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["a"]) == ("FINISHED", "tag")
    assert [point.value for point in client.get_metric_history(run.run_id, "loss")] == [0.5]
    assert text(client, run, "a.txt") == "a text"
    assert "mlflow_ft.heartbeat" not in stored.data.tags


def test_the_error_that_ended_a_run_in_an_outage_arrives_with_its_state(
    proxy: FaultyProxy, client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path
) -> None:
    folder = tmp_path / "outputs"
    with pytest.raises(TrackingError, match="my own error"), open_run(config.run, plugins=plugins) as run:
        run.open_journal(folder)
        run.begin("train")
        proxy.fail("cut")
        raise TrackingError("my own error")
    proxy.heal()
    deliver(folder)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert (stored.data.tags["mlflow_ft.error"], stored.data.tags["mlflow_ft.stage"]) == ("my own error", "train")


@pytest.mark.parametrize("failing", ["log_model", "register"])
def test_a_model_that_the_server_does_not_take_leaves_the_run_unfinished(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    echo: dict[str, Any],
    failing: str,
) -> None:
    folder = tmp_path / "outputs"
    with (
        pytest.raises(UndeliveredError, match="Everything so far is complete in") as error,
        open_run(config.run, plugins=plugins) as run,
    ):
        run.open_journal(folder)
        run.begin("package")
        model_id = run.log_model(ModelToLog(**echo)) if failing == "register" else ""
        proxy.fail("cut")
        run.metric("loss", 0.5, step=1)
        run.register(name="x", model_id=model_id, tags={}, alias="") if model_id else run.log_model(ModelToLog(**echo))
    assert f"mlflow-ft sync {folder}" in str(error.value)
    proxy.heal()
    assert deliver(folder) == 1
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert take_up(folder) == run.run_id
    assert take_up(folder) == run.run_id


def test_a_checkpoint_waits_for_the_server_and_training_goes_on(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    split: Split,
    echo: dict[str, Any],
) -> None:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        run.begin("train")
        model = ModelToLog(**echo | {"step": 3, "name": "checkpoint-3", "metadata": {"a": "b"}})
        proxy.fail("cut")
        run.log_checkpoint(model, {"eval/loss": 0.5}, dataset=split)
        (tmp_path / "package" / "model.safetensors").unlink()
        proxy.heal()
        run.set_tags({"a": "tag"})
    (logged,) = client.search_logged_models([run.experiment_id], filter_string=f"source_run_id = '{run.run_id}'")
    assert (logged.name, logged.status, logged.metrics[0].value) == ("checkpoint-3", LoggedModelStatus.READY, 0.5)
    assert logged.metrics[0].dataset_digest == split.digest
    paths = {file.path for file in client.list_logged_model_artifacts(logged.model_id, "artifacts/weights")}
    assert "artifacts/weights/model.safetensors" in paths


def test_a_server_that_hangs_is_not_asked_again_and_again(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs")
        monkeypatch.setattr(requesting, "RETRY_SECONDS", 60)
        failure = proxy.fail("hang", API)
        for number in range(20):
            run.set_tags({f"t{number}": "tag"})
        assert failure.hits <= 3
        proxy.heal()
    assert {f"t{number}" for number in range(20)} <= client.get_run(run.run_id).data.tags.keys()


# --- refused


def test_an_expired_credential_is_reported_at_once_and_the_work_kept(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "outputs"
    with pytest.raises(UndeliveredError, match="did not reach"), open_run(config.run, plugins=plugins) as run:
        run.open_journal(folder)
        run.begin("train")
        failure = proxy.fail(401, API)
        run.metric("loss", 0.5, step=1)
        run.set_tags({"a": "tag"})
        assert "renew the credentials" in caplog.text
    refused = [record for record in caplog.records if "cannot deliver metrics" in record.message]
    assert len(refused) == 1
    assert "MLFLOW_TRACKING_TOKEN" in refused[0].message
    assert failure.hits < 10, "401 is not repeated for ever"
    with pytest.raises(UndeliveredError, match="renew the credentials"):
        deliver(folder)
    proxy.heal()
    assert deliver(folder) == 2
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["a"], stored.data.metrics["loss"]) == ("FINISHED", "tag", 0.5)


def test_a_credential_that_may_not_write_ends_the_run_before_anything_is_spent(
    proxy: FaultyProxy, client: MlflowClient, config: Config, plugins: Plugins, tmp_path: Path
) -> None:
    with (
        pytest.raises(TrackingError, match="renew the credentials") as error,
        open_run(config.run, plugins=plugins) as run,
    ):
        run.open_journal(tmp_path / "outputs")
        run.begin("config")
        proxy.fail(403, "log-batch$")
        run.set_tags({"a": "tag"})
    assert error.value.exit_code == 2


def test_an_artifact_store_that_takes_no_files_is_named(
    proxy: FaultyProxy,
    client: MlflowClient,
    config: Config,
    plugins: Plugins,
    tmp_path: Path,
    echo: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        pytest.raises(UndeliveredError, match="make room in the artifact store"),
        open_run(config.run, plugins=plugins) as run,
    ):
        run.open_journal(tmp_path / "outputs")
        run.begin("package")
        proxy.fail(500, UPLOADS)
        run.artifact_text("a text", "a.txt")
        assert "answers 500 to uploads only: its artifact store is full or read-only" in caplog.text
        run.log_model(ModelToLog(**echo))
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["mlflow_ft.stage"]) == ("FAILED", "package")
    proxy.heal()
    assert deliver(tmp_path / "outputs") == 1
    assert text(client, run, "a.txt") == "a text"
    assert take_up(tmp_path / "outputs") == run.run_id


@contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """Let the system refuse to write beyond this size in any file, as a file system with a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_local_artifact_store_without_room_gets_the_files_later(
    store: str, config: Config, plugins: Plugins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "outputs"
    client = MlflowClient(store)
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(folder)
        run.begin("train")
        (folder / "weights.safetensors").write_bytes(b"w" * 20_000_000)
        with no_room_for(10_000_000):
            run.artifact(folder / "weights.safetensors", "files")
            assert "make room in the artifact store" in caplog.text
            run.set_tags({"a": "tag"})
        assert "a" not in client.get_run(run.run_id).data.tags, "the tag waits for the file before it"
    (file,) = client.list_artifacts(run.run_id, "files")
    assert file.file_size == 20_000_000
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["a"]) == ("FINISHED", "tag")
