"""A vLLM server as a process group of its own, which listens on a Unix socket that only this user can reach."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from mlflow_ft import ConfigError, FineTuneError, ModelError, ResourceError
from mlflow_ft.engine.environments import Environment

CHILD = Path(__file__).parents[1] / "child.py"
LONGEST = 3600
"""Seconds that a request to prove a model may take."""
GRACE_SECONDS = 10
"""How long vLLM may take to end before it is killed."""
POLL_SECONDS = 0.3
LAST_LINES = 6
MEMORY = re.compile(
    r"out of memory|MemoryError|No available memory|less than desired|larger than the (available|maximum)|"
    r"not enough memory|[Cc]annot allocate memory|DefaultCPUAllocator|KV cache is needed",
)
"""What vLLM, torch and the system say when memory is short."""
FAULT = re.compile(r"(\w*Error|\w*Exception|error): ")
HARMLESS = re.compile(r"\b(INFO|WARNING|DEBUG) \d|Warning: ")
VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # its socket is ours alone
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # all files are here
    "VLLM_LOGGING_COLOR": "0",
    "PYTHONUNBUFFERED": "1",
}


class VllmProcess:
    """Made with a folder of its own; `start`, `wait_until_ready`, then `stop`."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mlflow-ft-vllm-")  # with mode 700
        self.folder = Path(self._scratch.name)
        self.socket, self.log = self.folder / "vllm.sock", self.folder / "vllm.log"
        self.client = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(self.socket)), base_url="http://vllm", timeout=LONGEST
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = False

    def start(self, environment: Environment, arguments: Sequence[str], variables: dict[str, str]) -> None:
        """Start vLLM with the arguments of `vllm serve`."""
        command = [str(environment.python), "-P", str(CHILD), "--uds", str(self.socket), *arguments]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=environment.variables(VARIABLES | variables),
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @property
    def _code(self) -> int | None:
        return self._process.returncode if self._process else None

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until vLLM has loaded the model.

        Raises:
            ModelError: it ended, with its last lines, or is not ready in time. ResourceError: memory is short.
        """
        end = time.monotonic() + timeout
        while not self.ended:
            try:
                if self.client.get("/health").is_success:
                    self._was_ready = True
                    return
            except httpx2.TransportError:  # not listening yet
                pass
            if time.monotonic() > end:
                raise ModelError(
                    f"vLLM was not ready after {timeout:g} s\n{self.last_lines()}",
                    hint="allow more: --plugins.vllm.start_timeout",
                )
            time.sleep(POLL_SECONDS)
        raise self.fault()

    def fault(self) -> FineTuneError:
        """Why the process ended."""
        lines = self.last_lines()
        if self._code == -signal.SIGKILL or MEMORY.search(lines):
            how = "was killed, as the system does when memory is short" if not MEMORY.search(lines) else "has no memory"
            return ResourceError(
                f"vLLM {how}\n{lines}",
                hint="shorten --plugins.vllm.max_model_len, or change --plugins.vllm.gpu_memory_utilization (on a GPU) "
                "or --plugins.vllm.kv_cache_gib",
            )
        return ModelError(
            f"vLLM ended with exit code {self._code}\n{lines}",
            hint="start it again" if self._was_ready else "`--engine transformers` serves what vLLM does not support",
        )

    def last_lines(self) -> str:
        """The errors in vLLM's log, else its last lines."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        faults = list(dict.fromkeys(line for line in lines if FAULT.search(line) and not HARMLESS.search(line)))
        return "\n".join((faults or lines)[-LAST_LINES:])

    def post(self, path: str, **request: Any) -> httpx2.Response:
        """Send a request.

        Raises:
            ModelError, ResourceError: vLLM has ended. ConfigError: it refuses the request, with its words.
        """
        try:
            answer = self.client.post(path, json=request)
        except httpx2.TransportError as error:
            raise self.fault() if self.ended else ModelError(f"vLLM does not answer: {error}") from error
        if not answer.is_success:
            raise ConfigError(f"vLLM refuses {path}: {message(answer)}")
        return answer

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter as `name`."""
        self.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(folder))

    def unload(self, name: str) -> None:
        """Release an adapter."""
        self.post("/v1/unload_lora_adapter", lora_name=name)

    def stop(self) -> None:
        """End the whole process group, and wait for it."""
        self.client.close()
        if self._process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS)
            if self._process.stdin:
                self._process.stdin.close()
        self._scratch.cleanup()


def message(answer: httpx2.Response) -> str:
    """What an answer with an error says."""
    try:
        error = answer.json()
        return str(error.get("error", error).get("message") or error)
    except (ValueError, AttributeError):
        return answer.text[:300]
