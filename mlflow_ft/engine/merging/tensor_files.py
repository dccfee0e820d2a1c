"""Safetensors files tensor by tensor: read single weights, and write files without having them in memory."""

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

from mlflow_ft.engine.weight_files import INDEX, SINGLE, listed
from mlflow_ft.errors import ModelError, brief

ALIGNMENT = 8
"""The header is padded to a multiple of it, as by safetensors' own writer."""
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
    """Name, shape and type of one tensor of a file."""

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
    """The weights of a model's folder by name. They are not kept in memory."""

    folder: Path

    @cached_property
    def places(self) -> Mapping[str, Path]:
        """Which file each tensor is in, in the order of the files.

        Raises:
            ModelError: a file cannot be read, or the index lists a missing one.
        """
        return {name: file for file in self._files() for name in self._names(file)}

    def _files(self) -> list[Path]:
        files = listed(self.folder)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{self.folder}: {', '.join(missing)} is missing, but {INDEX} lists it")
        return files

    def _names(self, file: Path) -> list[str]:
        with _opened(file) as content:
            return list(content.offset_keys())

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Shape and type of every tensor."""
        entries: dict[str, Entry] = {}
        for file in dict.fromkeys(self.places.values()):
            with _opened(file) as content:
                for name in content.offset_keys():
                    part = content.get_slice(name)
                    dtype = DTYPES.get(part.get_dtype())
                    if dtype is None:
                        raise ModelError(f"{file}: {name} has the type {part.get_dtype()}, which is not supported")
                    entries[name] = Entry(name=name, shape=tuple(part.get_shape()), dtype=dtype)
        return entries

    def read(self, name: str) -> Tensor:
        """One tensor. Its file is opened only for it, so that the memory is released with the tensor."""
        with _opened(self.places[name]) as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}") from error


def shards(entries: Sequence[Entry], *, limit: int) -> dict[str, list[Entry]]:
    """Distribute the tensors, in order, over files of at most `limit` bytes; a larger tensor gets a separate file."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def write(file: Path, entries: Sequence[Entry], tensor: Callable[[Entry], Tensor]) -> None:
    """Write a safetensors file, requesting its tensors one after the other, and flush it to disk.

    The format: 8 bytes with the length of the header, the header (JSON: type, shape and place of each), the bytes.
    https://github.com/huggingface/safetensors#format
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # each begins at a multiple of its item size
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry, begin in zip(ordered, _begins(ordered), strict=True):
        place = [begin, begin + entry.size]
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    draft = file.with_name(file.name + ".part")  # never overwrite a file that may be mapped into memory
    with draft.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for entry in ordered:
            value = tensor(entry)
            assert (tuple(value.shape), value.dtype) == (entry.shape, entry.dtype), entry.name
            if value.numel():
                stream.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def _begins(entries: Sequence[Entry]) -> Iterator[int]:
    begin = 0
    for entry in entries:
        yield begin
        begin += entry.size


def index(shared: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """The content of `model.safetensors.index.json` for several files."""
    return {
        "metadata": {"total_size": sum(entry.size for group in shared.values() for entry in group)},
        "weight_map": {entry.name: name for name, group in shared.items() for entry in group},
    }
