"""GGUF: the whole model as one file for llama.cpp and Ollama, loaded by llama.cpp and compared with the trained model.

mlflow-ft train qlora --model MODEL --data rows.jsonl --package.exports gguf-q8_0
mlflow-ft export models:/NAME@champion --to gguf-q4_k_m --out DIR
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft import Exporter, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Form

NEEDED = ("xllamacpp", "sentencepiece")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A GGUF type, and how far its rounding may move the model."""

    name: str
    summary: str
    max_kl: float
    min_top1: float = 0.7


KINDS = (
    Kind(name="f16", summary="a GGUF file for llama.cpp and Ollama, 16 bits per weight", max_kl=0.01, min_top1=0.9),
    Kind(
        name="q8_0",
        summary="a GGUF file, 8.5 bits per weight: as good as f16 at half the size",
        max_kl=0.02,
        min_top1=0.85,
    ),
    Kind(name="q6_k", summary="a GGUF file, 6.6 bits per weight", max_kl=0.05),
    Kind(name="q5_k_m", summary="a GGUF file, 5.7 bits per weight on average", max_kl=0.1),
    Kind(name="q4_k_m", summary="a GGUF file, 4.8 bits per weight on average: the most common choice", max_kl=0.2),
)
"""The sizes hold for models whose rows are multiples of 256 weights; other rows stay in 8 bits."""


def export(kind: str, source: Path, folder: Path) -> None:
    """Write `model-KIND.gguf` and an Ollama Modelfile."""
    from mlflow_ft_gguf.engine import exporting

    exporting.export(source, folder, kind=kind)


def opened(folder: Path) -> AbstractContextManager[Form]:
    """The file as llama.cpp reads it."""
    from mlflow_ft_gguf.engine import llamacpp

    return llamacpp.opened(folder)


def missing(kind: str, folder: Path | None) -> str | None:
    """Which packages are missing, or why the converter refuses this model; the converter is fetched if necessary."""
    from mlflow_ft_gguf.engine import exporting

    packages = NEEDED if kind in exporting.DIRECT else (*NEEDED, "libgguf")
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (pip install {' '.join(absent)})"
    return exporting.refuses(folder)


@hookimpl
def register_exporters() -> list[Exporter]:
    return [
        Exporter(
            name=f"gguf-{kind.name}",
            summary=kind.summary,
            export=partial(export, kind.name),
            opened=opened,
            ready=partial(missing, kind.name),
            max_kl=kind.max_kl,
            min_top1=kind.min_top1,
        )
        for kind in KINDS
    ]
