"""Serving, following and ending, with the stand-in in vLLM's place: everything on our side is real."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow_ft_vllm
import psutil
import pytest
import requests

from mlflow_ft.progress import Progress

pytestmark = pytest.mark.slow  # each server imports torch twice


def test_contract(plugin_contract: Any) -> None:
    plugin_contract(mlflow_ft_vllm)


def test_adapters_on_their_base_and_all_ends_with_the_server(
    small: Path, make_lora: Callable[..., Path], running: Any, tmp_path: Path
) -> None:
    from mlflow_ft.engine.serving import opening
    from mlflow_ft.operations.serving import served_models

    adapters = {name: make_lora(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2))}
    words = [word for name, folder in adapters.items() for word in ("--adapter", f"{name}={folder}")]
    with running.serving(str(small), *words) as server:
        assert server.names == ["one", "two", "base"]
        said = {name: server.ask(name)["choices"][0]["message"]["content"] for name in server.names}
        assert len(set(said.values())) == 3, "the test proves nothing"
        for name, folder in adapters.items():
            model = served_models.found(str(folder), base=str(small), progress=Progress(quiet=True))
            alone = opening.alone(model, Progress(quiet=True)).complete({"messages": running.asked, "max_tokens": 8})
            assert said[name] == alone["choices"][0]["message"]["content"]
        sent = server.ask()["asked"]
        assert sent["model"] == "one", "the first is the default"
        assert (sent["temperature"], sent["top_p"], sent["top_k"]) == (0, 1.0, 0)
        assert sent["stop_token_ids"] == [3]
        sent = server.ask("two", temperature=0.5, max_completion_tokens=3, stop_token_ids=[7])["asked"]
        assert (sent["temperature"], sent["max_tokens"], sent["stop_token_ids"]) == (0.5, 3, [7, 3])
        stream = requests.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": running.asked, "stream": True, "max_tokens": 8},
            timeout=60,
        )
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.text.count("data: ") == len(said["one"].split(" "))
        check_refusals(server, running.asked)
        children = server.children()
        assert children
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 143
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def check_refusals(server: Any, asked: Any) -> None:
    def post(path: str, **request: Any) -> requests.Response:
        return requests.post(f"{server.url}{path}", json=request, timeout=60)

    unknown = post("/v1/chat/completions", messages=asked, model="three")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    other = post("/v1/chat/completions", messages=asked, chat_template="x")
    assert (other.status_code, "as in training" in other.text) == (400, True)
    assert post("/v1/load_lora_adapter", lora_name="x", lora_path="/").status_code == 404
    assert requests.get(f"{server.url}/health", timeout=60).ok


def test_a_single_model_answers_to_its_plain_name() -> None:
    from mlflow_ft_vllm.engine.targets import Target, Targets, UnknownModelError

    from mlflow_ft import ServedModel

    def target(name: str, version: int) -> Target:
        nothing: Any = None  # neither a process nor weights are asked for a name
        model = ServedModel(name=name, uri=f"models:/lamp/{version}", folder=Path())
        return Target(model=model, process=nothing, id=name, trained=nothing, adapter=False)

    targets = Targets()
    targets.put("lamp@champion", target("lamp@champion", 3))
    for name in ("lamp", "lamp@champion", None):
        with targets.taken(name) as taken:
            assert taken.model.uri == "models:/lamp/3"
    targets.put("other", target("other", 4))
    with pytest.raises(UnknownModelError), targets.taken("lamp"):
        pass


@pytest.mark.long
def test_a_promotion_changes_the_adapter_without_a_restart(
    small: Path, tiny_rows: Path, running: Any, fine_tune: Callable[..., Any]
) -> None:
    settings = {"registry.model_name": "lamp", "adapter.r": 4, "learning_rate": 1e-2}
    fine_tune("lora", model=small, data=tiny_rows, **settings)
    follow = ("lamp-adapter@candidate", "--follow", "--every", "0.3")
    with running.serving(*follow) as server:
        name = follow[0]
        assert server.roots == {name: "models:/lamp-adapter/1"}
        assert "is the trained model: mean KL" in server.log.read_text()
        vllm = server.children()
        fine_tune("lora", model=small, data=tiny_rows, **settings, seed=5)
        running.until(lambda: server.roots[name] == "models:/lamp-adapter/2", what=server.log.read_text)
        assert server.ask(name)["model"] == "models:/lamp-adapter/2"
        assert server.children() == vllm, "no other process was started"
        running.until(lambda: "loaded_loras 1\n" in requests.get(f"{server.url}/metrics", timeout=60).text)
        fine_tune("dora", model=small, data=tiny_rows, **settings)
        running.until(lambda: "vLLM cannot serve models:/lamp-adapter/3" in server.log.read_text())
        assert server.roots == {name: "models:/lamp-adapter/2"}, "what cannot be served changes nothing"
        vllm[0].kill()
        assert server.process.wait(60) == 2
        assert "vLLM was killed" in server.log.read_text()


@pytest.mark.long
def test_a_merged_model_is_changed_by_a_second_vllm_beside_the_first(
    small: Path, tiny_rows: Path, running: Any, fine_tune: Callable[..., Any]
) -> None:
    settings = {"registry.model_name": "lamp", "learning_rate": 1e-2}
    fine_tune("lora", model=small, data=tiny_rows, **settings)
    with running.serving("lamp@candidate", "--follow", "--every", "0.3") as server:
        [first] = server.children()
        fine_tune("lora", model=small, data=tiny_rows, **settings, seed=5)
        running.until(lambda: server.ask()["model"] == "models:/lamp/2", what=server.log.read_text)
        running.until(lambda: not first.is_running(), what=server.log.read_text)
        assert len(server.children()) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "text", "code", "said"),
    [
        ("wrong", "", 1, "is not the model that was trained: mean KL"),
        ("fails", "no such kernel", 2, "ValueError: no such kernel"),
        ("fails", "No available memory for the cache blocks", 2, "--plugins.vllm.max_model_len"),
    ],
)
def test_what_is_not_proved_is_not_served(
    small: Path, running: Any, tmp_path: Path, file: str, text: str, code: int, said: str
) -> None:
    model = shutil.copytree(small, tmp_path / "model")
    (model / file).write_text(text)  # the weights are those that were trained; the program computes something else
    ended, log = running.end(str(model))
    assert (ended, said in log) == (code, True), log


def test_a_port_in_use_is_told_before_anything_is_started(small: Path, running: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = running.end(str(small), "--port", str(taken.getsockname()[1]))
    assert (code, "cannot be bound" in said, "start vLLM" in said) == (2, True, False)
