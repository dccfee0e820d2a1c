"""The target of `mlflow deployments`, by MLflow's own client and command, with the stand-in in vLLM's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

pytestmark = pytest.mark.slow  # a deployment is a server


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow's client of the target, with deployments of its own, which are ended with the test."""
    from mlflow.deployments.interface import plugin_store

    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path / "cache"))
    point = metadata.EntryPoint("mlflow-ft-vllm", "mlflow_ft_vllm.engine.deployments", "mlflow.deployments")
    monkeypatch.setitem(plugin_store.registry, "mlflow-ft-vllm", point)  # as an installed plugin's entry point does
    client = get_deploy_client("mlflow-ft-vllm")
    yield client
    for deployment in client.list_deployments():
        client.delete_deployment(deployment["name"])


def test_a_deployment_from_its_creation_to_its_end(
    client: Any, small: Path, interpreter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {"python": str(interpreter), "timeout": "60"}
    made = client.create_deployment("support", str(small), config=config)
    assert "vLLM" in capfd.readouterr().err, "what the server says until it is ready"
    assert (made["flavor"], made["state"], made["model_uri"]) == ("mlflow-ft-vllm", "running", str(small))
    assert client.list_deployments() == [client.get_deployment("support")] == [made]
    request = {"messages": [{"role": "user", "content": "blue lamp"}], "max_tokens": 4}
    answers = client.predict("support", [request, request])["predictions"]
    assert [answer["choices"][0]["message"]["role"] for answer in answers] == ["assistant", "assistant"]
    with pytest.raises(MlflowException, match="cannot be set"):
        client.predict("support", request | {"chat_template": "x"})
    with pytest.raises(MlflowException, match="there is a deployment 'support'"):
        client.create_deployment("support", str(small), config=config)
    record = json.loads((Path(os.environ["MLFLOW_FT_CACHE"]) / "deployments" / "support.json").read_text())
    tree = [psutil.Process(record["pid"]), *psutil.Process(record["pid"]).children(recursive=True)]
    assert len(tree) > 1
    client.delete_deployment("support")
    assert not [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert client.list_deployments() == []


def test_one_that_does_not_start_leaves_nothing(client: Any, tmp_path: Path, interpreter: Path) -> None:
    with pytest.raises(MlflowException, match=r"(?s)did not start.*neither an adapter nor a model"):
        client.create_deployment("support", str(tmp_path), config={"python": str(interpreter)})
    assert client.list_deployments() == []


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [("support", {"dtyp": "float32"}, "-C dtyp: unknown"), ("../support", {}, "cannot name a deployment")],
)
def test_wrong_input_is_told_at_once(client: Any, name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(MlflowException, match=said):
        client.create_deployment(name, "models:/lamp@champion", config=config)
    with pytest.raises(MlflowException, match="there is no deployment 'other'; there are: none"):
        client.get_deployment("other")


def test_the_process_of_another_is_never_ended(client: Any) -> None:
    """A record whose process has ended, and whose number another one has now."""
    from mlflow_ft_vllm.engine import deployments

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        about = {"name": "old", "flavor": "x", "model_uri": "m", "url": "u", "log": "l", "config": {}}
        deployments._write("old", about | {"pid": other.pid, "created": 1.0})
        assert client.get_deployment("old")["state"] == "ended"
        client.delete_deployment("old")
        assert other.poll() is None
        other.kill()


def test_help_names_every_setting() -> None:
    from mlflow_ft_vllm.engine import deployments
    from mlflow_ft_vllm.options import VllmOptions

    assert all(name in deployments.target_help() for name in (*vars(VllmOptions()), "follow", "port"))
