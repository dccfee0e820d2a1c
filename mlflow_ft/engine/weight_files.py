"""Whether a model's weight files are all there and whole, found out from their names, sizes and headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow_ft.errors import ModelError, Problem

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


def check(folder: Path, name: str) -> None:
    """Raise ModelError if weights of the model in `folder` are missing, cut short or not safetensors.

    No weight is read: a safetensors file begins with the length of its header (8 bytes, little endian) and the header,
    JSON with where each tensor ends (https://github.com/huggingface/safetensors#format).
    """
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise ModelError(
            f"model {name!r}: the folder {folder} has no *.safetensors weights",
            hint="save it with save_pretrained(folder, safe_serialization=True); pickled weights are not read",
        )
    problems = list(_missing(folder)) or [problem for file in _named(folder, files) for problem in _damage(file)]
    if problems:
        raise ModelError(
            f"model {name!r}: its weights in {folder} are not complete",
            problems=problems,
            hint="copy or download the model again",
        )


def _named(folder: Path, files: Sequence[Path]) -> Sequence[Path]:
    """The files that transformers reads: those of the index, else `model.safetensors`, else all that there are."""
    if (folder / INDEX).is_file():
        return [folder / name for name in _indexed(folder)]
    return [file for file in files if file.name == "model.safetensors"] or files


def _indexed(folder: Path) -> list[str]:
    """The files that the index names.

    Raises:
        ValueError: it is not an index.
    """
    try:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _missing(folder: Path) -> Iterator[Problem]:
    """Files that the index names, and that are not there."""
    if not (folder / INDEX).is_file():
        return
    try:
        names = _indexed(folder)
    except ValueError:
        yield Problem(place=INDEX, message="is not an index of weights")
        return
    for name in names:
        if not (folder / name).is_file():
            yield Problem(place=name, message=f"is missing; {INDEX} names it")


def _damage(file: Path) -> Iterator[Problem]:
    """What is wrong with one file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if 0 < length <= min(size, LONGEST_HEADER) else b""
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        yield Problem(place=file.name, message="is not a safetensors file")
        return
    if size < end:
        yield Problem(place=file.name, message=f"is cut short: {size:,} bytes of {end:,}")
    elif size > end:
        yield Problem(place=file.name, message=f"has {size - end:,} bytes after its last tensor")
