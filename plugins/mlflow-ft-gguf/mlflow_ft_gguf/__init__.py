"""GGUF: the whole model as one file for llama.cpp and Ollama, read back by llama.cpp and compared with the trained one.

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
    from mlflow_ft.values import Form

NEEDED = ("xllamacpp", "sentencepiece")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the weights are held, and how far that may move the model."""

    name: str
    summary: str
    max_kl: float
    min_top1: float = 0.7


KINDS = (
    Kind(name="f16", summary="a GGUF file for llama.cpp and Ollama, 16 bits a weight", max_kl=0.01, min_top1=0.9),
    Kind(
        name="q8_0",
        summary="a GGUF file, 8.5 bits a weight: as good as f16 at half the size",
        max_kl=0.02,
        min_top1=0.85,
    ),
    Kind(name="q6_k", summary="a GGUF file, 6.6 bits a weight", max_kl=0.05),
    Kind(name="q5_k_m", summary="a GGUF file, 5.7 bits a weight on average", max_kl=0.1),
    Kind(name="q4_k_m", summary="a GGUF file, 4.8 bits a weight on average: what most people run", max_kl=0.2),
)
"""The sizes are those of a model whose rows have a multiple of 256 weights; rows of others stay in 8 bits."""


def export(kind: str, source: Path, folder: Path) -> None:
    """Write `model-KIND.gguf`, and an Ollama Modelfile beside it."""
    from mlflow_ft_gguf.engine import exporting

    exporting.export(source, folder, kind=kind)


def opened(folder: Path) -> AbstractContextManager[Form]:
    """The file as llama.cpp reads it."""
    from mlflow_ft_gguf.engine import llamacpp

    return llamacpp.opened(folder)


def missing(kind: str, folder: Path | None) -> str | None:
    """What is not installed, or why the converter does not take this model; where it is not there it is fetched."""
    from mlflow_ft_gguf.engine import exporting

    wanted = NEEDED if kind in exporting.DIRECT else (*NEEDED, "libgguf")
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
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
