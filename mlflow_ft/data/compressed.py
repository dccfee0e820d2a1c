"""Open a data file, compressed or not; a small one that unfolds into a huge one is refused before it fills anything."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mlflow_ft.errors import DataError

FOLD = 200
"""Text is compressed about fivefold, and machine-made rows some thirtyfold; beyond this it is no data."""
HARMLESS = 64 * 2**20
"""Bytes that any file may unfold into."""
BUFFER = 2**18


class Readable(Protocol):
    """Bytes that come out of a compressed file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


def _zstd(file: Path) -> Readable:
    import pyarrow

    opened: Readable = pyarrow.input_stream(str(file), compression="zstd")
    return opened


OPENERS: Mapping[str, Callable[[Path], Readable]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
"""By the last suffix of a name, what opens it."""


def suffix(file: Path) -> str:
    """The suffix that says what a file holds: `.jsonl` for `rows.jsonl` and for `rows.jsonl.gz`."""
    last = file.suffix.lower()
    return Path(file.stem).suffix.lower() if last in OPENERS else last


def binary(file: Path) -> io.BufferedReader:
    """Open a file for reading bytes, decompressed.

    Raises:
        DataError: while reading, too: the compression is broken, or it unfolds over 200-fold.
    """
    opener = OPENERS.get(file.suffix.lower())
    if opener is None:
        return io.BufferedReader(io.FileIO(file), buffer_size=BUFFER)
    return io.BufferedReader(_Guarded(file, opener(file)), buffer_size=BUFFER)


class _Guarded(io.RawIOBase):
    """Decompressed bytes, counted."""

    def __init__(self, file: Path, stream: Readable) -> None:
        self._file = file
        self._stream = stream
        self._most = max(HARMLESS, FOLD * file.stat().st_size)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self._file} cannot be decompressed beyond its first {self._read:,} bytes: {reason}",
                hint="the file is cut short or damaged: fetch or write it anew",
            ) from error
        self._read += len(data)
        if self._read > self._most:
            raise DataError(
                f"{self._file} unfolds into more than {self._most:,} bytes, over {FOLD} times its size",
                hint="it looks like a decompression bomb; if it is meant, decompress it yourself and name the result",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
