"""Whether a model's weight files are all there and whole, found out from their names, sizes and headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow_ft.errors import ModelError, Problem

WEIGHTS = "*.safetensors"
SINGLE = "model.safetensors"
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
    problems = list(_problems(folder, files))
    if problems:
        raise ModelError(
            f"model {name!r}: its weights in {folder} are not complete",
            problems=problems,
            hint="copy or download the model again",
        )


def listed(folder: Path) -> list[Path]:
    """The files that transformers reads: `model.safetensors`, else those that the index lists; none without either.

    Raises:
        ValueError: the index is not one.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of weights") from error
    return sorted(folder / name for name in names)


def _problems(folder: Path, files: Sequence[Path]) -> Iterator[Problem]:
    """What is wrong with the files that are listed, else with all `files`; damage only if none is missing."""
    try:
        wanted = listed(folder) or files
    except ValueError:
        yield Problem(place=INDEX, message="is not an index of weights")
        return
    missing = [file.name for file in wanted if not file.is_file()]
    for name in missing:
        yield Problem(place=name, message=f"is missing; {INDEX} names it")
    for file in wanted if not missing else ():
        yield from _damage(file)


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
