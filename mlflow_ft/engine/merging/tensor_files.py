"""Safetensors files tensor by tensor: read one weight of a model's, write a file that is never whole in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlflow_ft.errors import ModelError, brief

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ALIGNMENT = 8
"""The header is padded to a multiple of it, as safetensors' own writer does."""
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file, before it is there."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class ModelFiles:
    """The weights of a model's folder by name. Nothing of them stays in memory."""

    folder: Path

    @cached_property
    def places(self) -> Mapping[str, Path]:
        """Which file each tensor is in, in the order of the files.

        Raises:
            ModelError: a file cannot be read, or the index names one that is not there.
        """
        return {name: file for file in self._files() for name in self._names(file)}

    def _files(self) -> list[Path]:
        if (self.folder / WEIGHTS).is_file() or not (self.folder / INDEX).is_file():
            return [self.folder / WEIGHTS] if (self.folder / WEIGHTS).is_file() else []
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        files = [self.folder / name for name in dict.fromkeys(index["weight_map"].values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{self.folder}: {', '.join(missing)} is missing, but {INDEX} lists it")
        return sorted(files)

    def _names(self, file: Path) -> list[str]:
        with _opened(file) as content:
            return list(content.offset_keys())

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Shape and type of every tensor."""
        found: dict[str, Entry] = {}
        for file in dict.fromkeys(self.places.values()):
            with _opened(file) as content:
                for name in content.offset_keys():
                    part = content.get_slice(name)
                    dtype = DTYPES.get(part.get_dtype())
                    if dtype is None:
                        raise ModelError(f"{file}: {name} has the type {part.get_dtype()}, which is not supported")
                    found[name] = Entry(name=name, shape=tuple(part.get_shape()), dtype=dtype)
        return found

    def read(self, name: str) -> Tensor:
        """One tensor. Its file is opened for it alone: what is read goes from memory with the tensor."""
        with _opened(self.places[name]) as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}") from error


def shards(entries: Sequence[Entry], *, limit: int) -> dict[str, list[Entry]]:
    """Share the tensors out to files of at most `limit` bytes, in order; a larger tensor has a file of its own."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def write(file: Path, entries: Sequence[Entry], tensor: Callable[[Entry], Tensor]) -> None:
    """Write a safetensors file, asking for its tensors one after the other, and bring it to the disk.

    The format: 8 bytes with the length of the header, the header (JSON: type, shape and place of each), the bytes.
    https://github.com/huggingface/safetensors#format
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # each begins at a multiple of its item
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry, begin in zip(ordered, _begins(ordered), strict=True):
        place = [begin, begin + entry.size]
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    draft = file.with_name(file.name + ".part")  # never over a file that somebody has mapped into memory
    with draft.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for entry in ordered:
            found = tensor(entry)
            assert (tuple(found.shape), found.dtype) == (entry.shape, entry.dtype), entry.name
            if found.numel():
                stream.write(found.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def _begins(entries: Sequence[Entry]) -> Iterator[int]:
    begin = 0
    for entry in entries:
        yield begin
        begin += entry.size


def index(shared: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """What `model.safetensors.index.json` says of several files."""
    return {
        "metadata": {"total_size": sum(entry.size for group in shared.values() for entry in group)},
        "weight_map": {entry.name: name for name, group in shared.items() for entry in group},
    }
