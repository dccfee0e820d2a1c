"""A GGUF file as llama.cpp reads it: a separate process, queried over 127.0.0.1."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import requests
import torch
from torch import Tensor

from mlflow_ft import ModelError

CONTEXT = 4096
"""Context length in tokens; with the default data.max_length, training also cuts longer held-out rows."""
KNOWN = 1000
"""Number of most probable next tokens to request."""
LONGEST = 600
"""Time limit for an answer, in seconds."""
MARK = "listening "


class LlamaCpp:
    """A `mlflow_ft.values.Form` that queries llama.cpp."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()
        self.vocabulary = int(self.get("/v1/models")["data"][0]["meta"]["n_vocab"])

    def get(self, path: str) -> Any:
        answer = self.session.get(self.address + path, timeout=LONGEST)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **request: Any) -> Any:
        answer = self.session.post(self.address + path, json=request, timeout=LONGEST)
        if answer.status_code != requests.codes.ok:
            raise ModelError(f"llama.cpp refuses the request: {answer.text[:300]}")
        return answer.json()

    def logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        ids = input_ids.tolist()
        return torch.stack([self._next(ids[: place + 1]) for place in positions.tolist()])

    def _next(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities of the next token, shape (vocabulary,); NaN for tokens that llama.cpp does not return."""
        options = {"n_predict": 1, "temperature": 0, "n_probs": min(KNOWN, self.vocabulary), "cache_prompt": True}
        answer = self.post("/completion", prompt=list(ids), **options)
        known = answer["completion_probabilities"][0]["top_logprobs"]
        places = torch.tensor([token["id"] for token in known])
        logprobs = torch.full((self.vocabulary,), math.nan)
        logprobs[places] = torch.tensor([token["logprob"] for token in known])
        return logprobs

    def continued(self, input_ids: Tensor, length: int) -> list[int]:
        answer = self.post(
            "/completion", prompt=input_ids.tolist(), n_predict=length, temperature=0, return_tokens=True
        )
        return [int(token) for token in answer["tokens"]]

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text, with special tokens parsed."""
        answer = self.post("/tokenize", content=text, parse_special=True, add_special=False)
        return [int(token) for token in answer["tokens"]]

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that llama.cpp renders from a conversation with the template in the file."""
        return str(self.post("/apply-template", messages=list(messages))["prompt"])


@contextmanager
def opened(folder: Path) -> Iterator[LlamaCpp]:
    """The GGUF file in a folder, loaded by llama.cpp until the block ends.

    Raises:
        ModelError: llama.cpp cannot read it.
    """
    file = next(iter(sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise ModelError(f"no GGUF file in {folder}")
    command = [sys.executable, "-m", "mlflow_ft_gguf.child", str(file.absolute()), str(CONTEXT)]
    package = Path(__file__).parents[2]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=package,  # so that it works in a checkout where the plugin is not installed
        )
        try:
            yield LlamaCpp(_address(process, file, log))
        finally:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str], file: Path, log: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK).strip()
    process.wait(LONGEST)
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    raise ModelError(f"llama.cpp cannot read {file}: {lines[-1] if lines else 'no reason given'}")
