"""The README's demo as a user runs it: `mlflow run . -e qlora` on the real model, then MLflow's client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROMPT = [
    {"role": "system", "content": "Answer in JSON."},
    {"role": "user", "content": "Turn on the lamp in the attic."},
]
pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(1800)]


def mlflow_command(*arguments: str, store: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": f"{BIN}:{os.environ['PATH']}"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(["mlflow", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(uri)
    # Artifacts go to a temporary folder, not into the checkout.
    client.create_experiment("demo", artifact_location=str(tmp_path_factory.mktemp("artifacts")))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def run_id(store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A shortened demo: the same command, model and data, fewer steps, evaluations and held-out rows."""
    output = tmp_path_factory.mktemp("outputs")
    short = ["-P", "max_steps=12", "-P", "eval_steps=12", "-P", "evaluation.samples=0", "-P", "evaluation.max_rows=4"]
    short += ["-P", f"run.output_dir={output}"]
    arguments = ["run", ".", "-e", "qlora", "--env-manager", "local", "--experiment-name", "demo", *short]
    completed = mlflow_command(*arguments, store=store)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    runs = MlflowClient(store).search_runs([MlflowClient(store).get_experiment_by_name("demo").experiment_id])
    assert len(runs) == 1, "one job is one run"
    return str(runs[0].info.run_id)


def test_the_run_is_finished_and_records_its_settings_and_inputs(store: str, run_id: str) -> None:
    run = MlflowClient(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["cfg.model.quantize"] == "nf4"
    assert run.data.params["cfg.training.max_steps"] == "12"
    assert run.data.tags["mlflow_ft.method"] == "qlora"
    assert run.data.tags["mlflow_ft.base_revision"]
    assert run.data.tags["mlflow_ft.git_commit"]
    inputs = run.inputs.dataset_inputs
    contexts = {tag.value for entry in inputs for tag in entry.tags if tag.key == "mlflow.data.context"}
    assert contexts == {"train", "eval"}
    assert all(len(entry.dataset.digest) == 32 for entry in inputs)


def test_it_learns_on_rows_it_never_saw(store: str, run_id: str) -> None:
    metrics = MlflowClient(store).get_run(run_id).data.metrics
    assert metrics["eval/tuned/loss"] < 0.5 * metrics["eval/base/loss"]
    assert metrics["eval/tuned/valid_json"] >= metrics["eval/base/valid_json"]
    curve = MlflowClient(store).get_metric_history(run_id, "train/loss")
    assert [point.step for point in curve] == list(range(1, 13))


def test_both_forms_are_the_trained_model(store: str, run_id: str) -> None:
    metrics = MlflowClient(store).get_run(run_id).data.metrics
    assert metrics["parity/adapter/kl_mean"] < 1e-4, "the adapter is read back as it was written"
    assert metrics["parity/merged/kl_mean"] < 5e-3, "the merged model differs only by rounding to bfloat16"


def test_versions_are_linked_and_have_the_alias(store: str, run_id: str) -> None:
    client = MlflowClient(store)
    merged = client.get_model_version_by_alias("smollm2-135m-qlora", "candidate")
    adapter = client.get_model_version_by_alias("smollm2-135m-qlora-adapter", "candidate")
    assert merged.tags["mlflow_ft.adapter_version"] == f"models:/{adapter.name}/{adapter.version}"
    assert adapter.tags["mlflow_ft.merged_version"] == f"models:/{merged.name}/{merged.version}"
    assert merged.run_id == adapter.run_id == run_id


def test_peft_reads_the_downloaded_adapter(store: str, run_id: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = mlflow.artifacts.download_artifacts("models:/smollm2-135m-qlora-adapter@candidate/artifacts/model")
    base = json.loads(Path(folder, "base.json").read_text())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base["name_or_path"]), folder)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) < 30 * 2**20


def test_the_candidate_answers_a_chat_request_over_http(store: str, run_id: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = ["mlflow", "models", "serve", "-m", "models:/smollm2-135m-qlora@candidate"]
    command += ["--env-manager", "local", "-p", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        try:
            wait_until_it_pings(port, server, tmp_path / "server.log")
            answer = requests.post(
                f"http://127.0.0.1:{port}/invocations", json={"messages": PROMPT, "max_tokens": 48}, timeout=300
            )
        finally:
            server.terminate()
            server.wait(30)
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert reply["choices"][0]["finish_reason"] == "stop", "the end of turn was learned"


def wait_until_it_pings(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    pytest.fail(log.read_text())
