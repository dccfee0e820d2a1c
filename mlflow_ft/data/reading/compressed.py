"""Opens a data file, compressed or not; a decompression bomb is refused before it fills memory or disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mlflow_ft.errors import brief

FOLD = 200
"""Text compresses about fivefold, and generated rows about thirtyfold; anything beyond this is not data."""
HARMLESS = 64 * 2**20
"""Bytes that any file may expand to."""
DICTIONARY = 512 * 2**20
"""Bytes of memory that decompression may take: `xz -9` needs 65 MiB, and a file may ask for 4 GiB."""
BUFFER = 2**18
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class BrokenFile(Exception):  # noqa: N818  it is what it is called: a file that cannot be read any further
    """What is wrong with a file as a whole; the rows after the place cannot be separated."""

    def __init__(self, reason: str, *, line: int | None = None, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.hint = hint


class Readable(Protocol):
    """The decompressed bytes of a file."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _Members:
    """The contents of the members of a bz2 or xz file; Python's own readers ignore trailing garbage."""

    def __init__(self, file: Path, begin: Callable[[], Any]) -> None:
        self._file = file.open("rb")
        self._begin = begin
        self._member = begin()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._member.eof:
                data = self._next_member()
                if not data:
                    return b""
                self._member = self._begin()
            else:
                data = self._file.read(BUFFER) if self._member.needs_input else b""
                if self._member.needs_input and not data:
                    raise EOFError("it ends before its end mark")
            if decompressed := self._member.decompress(data, size):
                return bytes(decompressed)

    def _next_member(self) -> bytes:
        """The bytes from the next member on, without the zeros between members; b"" at the end of the file."""
        data: bytes = self._member.unused_data
        while not (data := data.lstrip(b"\0")):
            data = self._file.read(BUFFER)
            if not data:
                return b""
        return data

    def close(self) -> None:
        self._file.close()


def _bz2(file: Path) -> Readable:
    return _Members(file, bz2.BZ2Decompressor)


def _xz(file: Path) -> Readable:
    return _Members(file, lambda: lzma.LZMADecompressor(memlimit=DICTIONARY))


def _zstd(file: Path) -> Readable:
    import pyarrow

    opened: Readable = pyarrow.input_stream(str(file), compression="zstd")
    return opened


OPENERS: Mapping[str, Callable[[Path], Readable]] = {".gz": gzip.GzipFile, ".bz2": _bz2, ".xz": _xz, ".zst": _zstd}
"""By a file's last suffix, what opens it."""


def suffix(file: Path) -> str:
    """The suffix for the kind of a file: `.jsonl` for `rows.jsonl` and for `rows.jsonl.gz`."""
    last = file.suffix.lower()
    return Path(file.stem).suffix.lower() if last in OPENERS else last


def binary(file: Path) -> io.BufferedReader:
    """Open a file for reading bytes, decompressed.

    Raises:
        BrokenFile: while reading: the compression is broken, or the file expands over 200-fold.
    """
    opener = OPENERS.get(file.suffix.lower())
    if opener is None:
        return io.BufferedReader(io.FileIO(file), buffer_size=BUFFER)
    return io.BufferedReader(_Guarded(file, opener(file)), buffer_size=BUFFER)


def text(file: Path) -> io.BufferedReader:
    """Open a file of text for reading its bytes, decompressed.

    Raises:
        BrokenFile: it is UTF-16; and while reading, as `binary`.
    """
    stream = binary(file)
    if stream.peek(2)[:2] in UTF_16:
        stream.close()
        raise BrokenFile("not UTF-8 text (it looks like UTF-16)", line=1, hint="save the file as UTF-8")
    return stream


class _Guarded(io.RawIOBase):
    """Decompressed bytes, counted."""

    def __init__(self, file: Path, stream: Readable) -> None:
        self._stream = stream
        self._most = max(HARMLESS, FOLD * file.stat().st_size)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise BrokenFile(
                f"it cannot be decompressed beyond its first {self._read:,} bytes: {brief(error)}",
                hint="the file is truncated or damaged: download or write it again",
            ) from error
        self._read += len(data)
        if self._read > self._most:
            raise BrokenFile(
                f"it expands to more than {self._most:,} bytes, over {FOLD} times its size",
                hint="it looks like a decompression bomb; if it is not, decompress it yourself and name the result",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
