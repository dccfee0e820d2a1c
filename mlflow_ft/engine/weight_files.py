"""Whether a model's weight files are all there and whole, found out from their names, sizes and headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a weight file, from the file's header."""

    dtype: str
    """As safetensors names it: `F32`, `BF16`, `U8`."""
    shape: tuple[int, ...]


def tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor in the weight files that transformers reads, as far as they are here, by name; no weight is read.

    Raises:
        OSError: a file cannot be read. ValueError: one is not a safetensors file.
    """
    files = [file for file in listed(folder) or sorted(folder.glob(WEIGHTS)) if file.is_file()]
    return {
        name: Stored(dtype=str(entry["dtype"]), shape=tuple(entry["shape"]))
        for file in files
        for name, entry in _header(file)[0].items()
    }


def all_here(folder: Path) -> bool:
    """Whether no weight file is left to be fetched."""
    files = listed(folder) or list(folder.glob(WEIGHTS))
    return bool(files) and all(file.is_file() for file in files)


def size(folder: Path) -> int:
    """The bytes of the weight files, or those that they will have once they are fetched; 0 if nothing says so."""
    if all_here(folder):
        return sum(file.stat().st_size for file in folder.glob(WEIGHTS))
    try:
        return int(json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


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
    damaged = [problem for file in wanted if not missing for problem in _damage(file)]
    yield from damaged
    if not missing and not damaged and not (folder / SINGLE).is_file():
        yield from _lost(folder)


def _lost(folder: Path) -> Iterator[Problem]:
    """Tensors that the index places in a file that does not have them; transformers would make them random."""
    if not (folder / INDEX).is_file():
        return
    places: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    for file in sorted(set(places.values())):
        inside = _header(folder / file)[0]
        lost = sorted(name for name, place in places.items() if place == file and name not in inside)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield Problem(place=file, message=f"has no tensor {lost[0]}{more}; {INDEX} says it does")


def _damage(file: Path) -> Iterator[Problem]:
    """What is wrong with one file."""
    try:
        entries, length = _header(file)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except OSError as error:
        yield Problem(place=file.name, message=f"cannot be read: {error.strerror}")
        return
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        yield Problem(place=file.name, message="is not a safetensors file")
        return
    size = file.stat().st_size
    if size < end:
        yield Problem(place=file.name, message=f"is cut short: {size:,} bytes of {end:,}")
    elif size > end:
        yield Problem(place=file.name, message=f"has {size - end:,} bytes after its last tensor")


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors in a file's header by name, and the length of the header in bytes."""
    limit = min(file.stat().st_size, LONGEST_HEADER)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length) if 0 < length <= limit else b"")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, length
