"""A small Llama that vLLM can run, adapters on it, and an environment in which a stand-in takes vLLM's place."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import requests
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mlflow_ft.testing import make_tiny_tokenizer

STAND_IN = Path(__file__).parent / "stand_in"


def make_small(folder: Path, *, seed: int = 0) -> Path:
    """As the tiny model, with heads of 64 values: vLLM's kernels for a CPU have no smaller ones."""
    tokenizer: Any = make_tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def make_lora(small: Path) -> Callable[..., Path]:
    """An adapter on the small model, with random weights."""

    def make(folder: Path, *, seed: int = 1, **settings: Any) -> Path:
        torch.manual_seed(seed)
        chosen = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
        model = get_peft_model(LlamaForCausalLM.from_pretrained(small), LoraConfig(**chosen))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has our packages, and the stand-in as `vllm`."""
    folder = tmp_path_factory.mktemp("environment") / "vllm"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "paths.pth").write_text(f"{STAND_IN}\n{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


ASKED = [{"role": "user", "content": "blue lamp green"}]


class Server(NamedTuple):
    """One that answers."""

    url: str
    names: list[str]
    process: subprocess.Popen[str]
    log: Path

    def ask(self, model: str | None = None, **more: Any) -> Any:
        request = {"messages": ASKED, "max_tokens": 8} | ({"model": model} if model else {}) | more
        answer = requests.post(f"{self.url}/v1/chat/completions", json=request, timeout=120)
        assert answer.ok, answer.text
        return answer.json()

    @property
    def roots(self) -> dict[str, str]:
        """What each name means."""
        return {
            model["id"]: model["root"] for model in requests.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        }

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


class Running:
    """Starts servers, in the environment with the stand-in or in another one."""

    asked = ASKED

    def __init__(self, interpreter: Path, folder: Path) -> None:
        self.interpreter, self.folder = interpreter, folder

    def command(self, *arguments: str) -> list[str]:
        start = (sys.executable, "-m", "mlflow_ft", "serve", *arguments, "--engine", "vllm")
        port = () if "--port" in arguments else ("--port", "0")
        return [*start, *port, "--json", "--plugins.vllm.python", str(self.interpreter)]

    def end(self, *arguments: str) -> tuple[int, str]:
        """Run a server that does not start; its exit code and what it says."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, cwd=self.folder, timeout=900)
        return done.returncode, done.stderr

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[Server]:
        """A server on a free port, killed at the end."""
        log = self.folder / f"server-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            process = subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            announced = json.loads(line)
            yield Server(announced["url"], announced["models"], process, log)
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def until(true: Callable[[], Any], *, seconds: float = 240, what: Callable[[], str] = str) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(requests.ConnectionError):
                if true():
                    return
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s: {what()}")


@pytest.fixture
def running(interpreter: Path, tmp_path: Path) -> Running:
    return Running(interpreter, tmp_path)
