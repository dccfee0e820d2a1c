from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ModelError, RefusedError, TrackingError
from mlflow_ft.plugins import Plugins
from mlflow_ft.tracking import ActiveRun, ModelToLog, models, open_run
from mlflow_ft.values import Split
from tests.tracking.conftest import ECHO

REQUEST = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0.0}


@pytest.fixture
def run(store: str, config: Config, plugins: Plugins, tmp_path: Path) -> Iterator[ActiveRun]:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs" / run.run_id)
        yield run


def predict(uri: str, request: Any) -> Any:
    return mlflow.pyfunc.load_model(uri).predict(request)


def test_a_model_from_code_answers_one_chat_completion(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], config: Config
) -> None:
    run.log_config(config, text="")
    run.metric("unrelated", 1, step=0)
    assert run.flush(10)

    model_id = run.log_model(ModelToLog(**echo))

    model = client.get_logged_model(model_id)
    assert (str(model.status), model.name, model.model_type) == ("READY", "echo", "adapter")
    assert model.source_run_id == run.run_id
    assert model.params["cfg.method"] == "sft"
    assert not model.metrics  # only what is linked by name
    assert [output.model_id for output in client.get_run(run.run_id).outputs.model_outputs] == [model_id]
    answer = predict(f"models:/{model_id}", REQUEST)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "hello hi 5 0.0"


STRICT = {"type": "object", "additionalProperties": False, "properties": {"on": {"type": "object", "properties": {}}}}
TOOL = {"type": "function", "function": {"name": "look", "strict": True, "parameters": STRICT}}
CALL = {"id": "1", "type": "function", "index": 0, "function": {"name": "look", "arguments": "{}"}}
ASKED = {"role": "user", "content": "hi"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL], "annotations": [], "reasoning_content": "why"}
RESULT = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "4"}


@pytest.mark.parametrize(
    "asked",
    [
        [{"messages": [ASKED], "tools": [TOOL]}],
        [{"messages": [ASKED, CALLED, RESULT]}],
        [{"messages": [ASKED], "max_tokens": 5, "seed": 1}, {"messages": [ASKED], "tools": [TOOL], "stream": False}],
    ],
    ids=["nested tools", "a call and its result", "requests that differ"],
)
def test_what_a_request_may_hold_reaches_the_model(
    run: ActiveRun, echo: dict[str, Any], asked: list[dict[str, Any]]
) -> None:
    kept = "return [row[row.notna()].to_json() for _, row in model_input.iterrows()]"
    echo["code"].write_text(re.sub(r"(?s)(model_input, params=None\):\n\s+).*?\n\n", rf"\1{kept}\n\n\n", ECHO))
    answer = predict(f"models:/{run.log_model(ModelToLog(**echo))}", asked)
    assert [json.loads(text) for text in answer] == asked


def test_the_model_has_its_artifacts_without_pickles_or_local_paths(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], tmp_path: Path
) -> None:
    root = Path(client.get_logged_model(run.log_model(ModelToLog(**echo))).artifact_location)

    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {"artifacts/weights/model.safetensors", "artifacts/weights/inner/tokenizer.json"} <= names
    assert "artifacts/greeting/greeting.txt" in names
    assert not {name for name in names if name.endswith((".pkl", ".pickle"))}
    description = yaml.safe_load((root / "MLmodel").read_text())
    assert description["metadata"] == {"base": "tiny"}
    assert str(tmp_path / "echo.py") not in (root / "MLmodel").read_text()
    assert (root / "requirements.txt").read_text().splitlines() == ["mlflow"]


def test_an_input_example_is_kept_and_nothing_is_loaded(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], tmp_path: Path
) -> None:
    echo["code"].write_text(
        echo["code"].read_text().replace("def load_context", "def load_context(self, c): 1/0\n    def x")
    )

    root = Path(client.get_logged_model(run.log_model(ModelToLog(**echo, input_example=REQUEST))).artifact_location)
    assert (root / "input_example.json").exists()


def test_a_model_that_could_not_be_logged_is_failed_and_not_registered(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", full)
    with pytest.raises(TrackingError, match="could not log the model echo: no space left"):
        run.log_model(ModelToLog(**echo))

    (model,) = client.search_logged_models([run.experiment_id])
    assert str(model.status) == "FAILED"
    with pytest.raises(RefusedError, match="not READY"):
        run.register(name="m", model_id=model.model_id, tags={}, alias="candidate")
    assert client.search_registered_models() == []


def test_a_model_without_its_mlmodel_file_is_not_registered(run: ActiveRun, client: MlflowClient) -> None:
    model = client.create_logged_model(run.experiment_id, name="empty", source_run_id=run.run_id)
    client.finalize_logged_model(model.model_id, "READY")
    with pytest.raises(RefusedError, match="no MLmodel"):
        run.register(name="m", model_id=model.model_id, tags={}, alias="candidate")


def test_scores_are_linked_to_model_and_data(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], split: Split
) -> None:
    run.log_inputs([split])
    first, second = run.log_model(ModelToLog(**echo)), run.log_model(ModelToLog(**echo | {"name": "echo.2"}))
    run.metric("loss", 0.5, timestamp_ms=1)
    for model_id in (first, second):  # the same value for both: neither may be taken for a copy of the other
        run.metric("loss", 0.5, model_id=model_id, dataset=split, timestamp_ms=1)
    run.metrics({"exact": 0.25}, model_id=first, dataset=split, step=7)
    assert run.flush(10)

    metrics = {metric.key: metric for metric in client.get_logged_model(first).metrics}
    assert metrics.keys() == {"loss", "exact"}
    assert (metrics["exact"].value, metrics["exact"].step) == (0.25, 7)
    assert (metrics["exact"].dataset_name, metrics["exact"].dataset_digest) == ("rows.jsonl", split.digest)
    assert [metric.value for metric in client.get_logged_model(second).metrics] == [0.5]
    assert client.get_run(run.run_id).inputs.model_inputs == []


def test_versions_are_numbered_tagged_and_aliased(run: ActiveRun, client: MlflowClient, echo: dict[str, Any]) -> None:
    first = run.log_model(ModelToLog(**echo))
    second = run.log_model(ModelToLog(**echo | {"name": "second"}))

    assert run.register(name="chat", model_id=first, tags={"gate": "none"}, alias="candidate") == 1
    assert run.register(name="chat", model_id=second, tags={}, alias="candidate") == 2
    run.tag_version("chat", 2, {"gate": "passed", "kl": "0.001"})

    version = client.get_model_version_by_alias("chat", "candidate")
    assert int(version.version) == 2
    assert version.run_id == run.run_id
    assert version.tags == {"gate": "passed", "kl": "0.001", "mlflow_ft.model_id": second}
    assert client.get_model_version("chat", "1").tags["gate"] == "none"
    assert predict("models:/chat@candidate", REQUEST)["object"] == "chat.completion"
    assert predict("models:/chat/1", REQUEST)["object"] == "chat.completion"
    assert predict("models:/chat/1", REQUEST | {"temperature": 2})["object"] == "chat.completion"


def test_an_alias_race_is_tried_again(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_alias, failures = MlflowClient.set_registered_model_alias, [MlflowException("duplicate key")]

    def race(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        set_alias(*arguments)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", race)
    assert run.register(name="chat", model_id=run.log_model(ModelToLog(**echo)), tags={}, alias="candidate") == 1
    assert client.get_registered_model("chat").aliases.keys() == {"candidate"}


@pytest.mark.slow
def test_mlflow_models_serve_answers_one_openai_object(run: ActiveRun, echo: dict[str, Any], tmp_path: Path) -> None:
    model_id = run.log_model(ModelToLog(**echo))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{model_id}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    uri = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = os.environ | {"PATH": path}  # it starts `uvicorn`, found on the PATH
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environ)
    try:
        _wait_for_server(uri, process, log)
        answer = requests.post(f"{uri}/invocations", json=REQUEST, timeout=30).json()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello hi 5 0.0"}


def _wait_for_server(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{uri}/ping", timeout=1).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.1)
    pytest.fail(f"the server did not start: {log.read_text()}")


def test_an_alias_and_the_latest_version_are_pinned_to_a_number(tracking_store: str) -> None:
    client = MlflowClient()
    client.create_registered_model("named")
    for _ in range(2):
        client.create_model_version("named", source="file:///nowhere")
    client.set_registered_model_alias("named", "best", "1")
    assert models.pinned("models:/named@best") == "models:/named/1"
    assert models.pinned("models:/named/latest") == "models:/named/2"
    for kept in ("models:/named/1", "runs:/abc/model", "folder"):
        assert models.pinned(kept) == kept
    with pytest.raises(ModelError, match="no model 'named' with the alias 'worst'"):
        models.pinned("models:/named@worst")
    with pytest.raises(ModelError, match="no version of 'other'"):
        models.pinned("models:/other/latest")


def test_an_existing_registered_model_needs_one_connection(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "AssertionPool")  # raises at a second one
    client = MlflowClient(store)
    for _ in range(2):
        models.ensure_registered_model(client, "chat")
    assert [model.name for model in client.search_registered_models()] == ["chat"]


def test_a_new_registered_model_says_what_it_is_and_what_users_write_stays(
    run: ActiveRun, client: MlflowClient, echo: dict[str, Any]
) -> None:
    model_id = run.log_model(ModelToLog(**echo))
    tags = {"mlflow_ft.base_model": "smollm2-135m", "mlflow_ft.form": "merged"}
    run.register(name="chat", model_id=model_id, tags=tags, alias="")
    description = client.get_registered_model("chat").description
    assert description.startswith("smollm2-135m, fine-tuned with mlflow-ft (form: merged).")
    assert "`mlflow-ft promote chat`" in description
    client.update_registered_model("chat", "our own words")
    run.register(name="chat", model_id=run.log_model(ModelToLog(**echo)), tags=tags, alias="")
    assert client.get_registered_model("chat").description == "our own words"
