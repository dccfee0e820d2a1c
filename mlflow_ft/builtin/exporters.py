"""Forms of the whole model in fewer bits that transformers can load."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflow_ft import Exporter, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Form


def export_nf4(source: Path, folder: Path) -> None:
    """The linear layers in 4 bits (NF4, double quantisation), the rest unchanged."""
    _write(source, folder, quantize="nf4")


def export_int8(source: Path, folder: Path) -> None:
    """The linear layers in 8 bits (LLM.int8()), the rest unchanged."""
    _write(source, folder, quantize="int8")


def _write(source: Path, folder: Path, *, quantize: Literal["int8", "nf4"]) -> None:
    from mlflow_ft.engine.merging import quantised

    quantised.write(source, folder, quantize=quantize)


def opened(folder: Path) -> AbstractContextManager[Form]:
    """The model as `from_pretrained` loads it."""
    from mlflow_ft.engine.merging import quantised

    return quantised.opened(folder)


def no_bitsandbytes(folder: Path | None) -> str | None:
    """Why quantisation is not possible here; None where it is."""
    return None if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"


@hookimpl
def register_exporters() -> list[Exporter]:
    exporter = partial(Exporter, opened=opened, ready=no_bitsandbytes)
    return [
        exporter(
            name="nf4",
            summary="in 4 bits (NF4, double quantisation) by bitsandbytes: a quarter of the memory, for GPUs",
            export=export_nf4,
            suffix="-nf4",
            grid="nf4",
        ),
        exporter(
            name="int8",
            summary="in 8 bits (LLM.int8()) by bitsandbytes: half the memory, for GPUs",
            export=export_int8,
            suffix="-int8",
            grid="int8",
        ),
    ]
