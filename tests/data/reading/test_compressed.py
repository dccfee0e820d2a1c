from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from mlflow_ft.data.reading import compressed, readers
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pyarrow.compress(data, codec="zstd", asbytes=True)),
}
every_kind = pytest.mark.parametrize("kind", COMPRESS)
RAW = b"".join(b'{"a": %d}\n' % random.Random(number).getrandbits(64) for number in range(200))


def read(folder: Path, kind: str, data: bytes) -> bytes:
    file = folder / f"rows.jsonl{kind}"
    file.write_bytes(data)
    with compressed.binary(file) as stream:
        return stream.read()


def test_every_kind_has_a_test() -> None:
    assert set(COMPRESS) == set(compressed.OPENERS)


@every_kind
@pytest.mark.parametrize("size", [0, 1, 2**18, 2**18 + 1, 3 * 2**20])
def test_what_was_compressed_is_read(tmp_path: Path, kind: str, size: int) -> None:
    data = random.Random(1).randbytes(size)
    assert read(tmp_path, kind, COMPRESS[kind](data)) == data


@every_kind
def test_several_members_are_read_one_after_another(tmp_path: Path, kind: str) -> None:
    """Tools that compress in parallel, and `cat a.gz b.gz`, write them."""
    parts = [RAW[:100], b"", RAW[100:]]
    assert read(tmp_path, kind, b"".join(COMPRESS[kind](part) for part in parts)) == RAW


@pytest.mark.parametrize("kind", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("zeros", [4, 8, 2**18])
def test_zeros_behind_a_member_are_padding(tmp_path: Path, kind: str, zeros: int) -> None:
    member = COMPRESS[kind](RAW)
    assert read(tmp_path, kind, member + b"\0" * zeros) == RAW
    assert read(tmp_path, kind, member + b"\0" * zeros + member) == 2 * RAW


@every_kind
@pytest.mark.parametrize("behind", [b"garbage!", b"X"])
def test_data_after_the_last_member_is_reported(tmp_path: Path, kind: str, behind: bytes) -> None:
    with pytest.raises(BrokenFile, match=r"cannot be decompressed beyond its first [\d,]+ bytes"):
        read(tmp_path, kind, COMPRESS[kind](RAW) + behind)


@every_kind
def test_a_second_member_whose_beginning_is_damaged_does_not_pass_for_the_end(tmp_path: Path, kind: str) -> None:
    second = b"X" + COMPRESS[kind](RAW)[1:]
    with pytest.raises(BrokenFile, match="cannot be decompressed beyond"):
        read(tmp_path, kind, COMPRESS[kind](RAW) + second)


@every_kind
def test_a_file_that_is_cut_anywhere_never_passes_for_a_whole_one(tmp_path: Path, kind: str) -> None:
    whole = COMPRESS[kind](RAW)
    file = tmp_path / f"rows.jsonl{kind}"
    step = max(1, len(whole) // 150)
    for end in [*range(1, len(whole) - 12, step), *range(len(whole) - 12, len(whole))]:
        file.write_bytes(whole[:end])
        rows: list[Row | Unreadable] = []
        with pytest.raises(DataError, match=rf"rows\.jsonl{kind}: it cannot be decompressed"):
            rows.extend(readers.read_file(file))
        assert [row.line for row in rows] == list(range(1, len(rows) + 1))


@every_kind
def test_a_damaged_file_is_read_as_it_was_or_reported(tmp_path: Path, kind: str) -> None:
    """Of zstd, which keeps no check sum here, only that nothing else is raised."""
    whole = COMPRESS[kind](RAW)
    chance = random.Random(7)
    told = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            rows = read(tmp_path, kind, bytes(damaged))
        except BrokenFile:
            told += 1
        else:
            assert kind == ".zst" or rows == RAW
    assert told > 50


@every_kind
def test_what_is_not_compressed_at_all_is_reported(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BrokenFile, match="beyond its first 0 bytes"):
        read(tmp_path, kind, RAW)


@every_kind
def test_a_small_file_that_unfolds_into_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(compressed, "HARMLESS", 2**20)
    assert read(tmp_path, kind, COMPRESS[kind](bytes(2**20))) == bytes(2**20)
    bomb = COMPRESS[kind](bytes(2**26))
    with pytest.raises(BrokenFile, match=r"expands to more than [\d,]+ bytes, over 200 times its size") as error:
        read(tmp_path, kind, bomb)
    assert "decompress it yourself" in error.value.hint


@every_kind
def test_what_is_compressed_as_well_as_text_can_be_is_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(compressed, "HARMLESS", 1)
    assert read(tmp_path, kind, COMPRESS[kind](RAW)) == RAW


def test_a_real_bomb_ends_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "zeros.jsonl.gz"
    file.write_bytes(gzip.compress(bytes(100 * 2**20)))
    assert file.stat().st_size < 2**17
    with pytest.raises(DataError, match=r"zeros\.jsonl\.gz: it expands to more than 67,108,864 bytes"):
        list(readers.read_file(file))


def test_an_xz_file_may_not_ask_for_all_of_the_memory(tmp_path: Path) -> None:
    """The header of an .lzma file says how much: here, 4 GiB."""
    whole = lzma.compress(RAW, format=lzma.FORMAT_ALONE)
    assert read(tmp_path, ".xz", whole) == RAW
    with pytest.raises(BrokenFile, match="Memory usage limit exceeded"):
        read(tmp_path, ".xz", whole[:1] + struct.pack("<I", 2**32 - 1) + whole[5:])


@pytest.mark.parametrize("data", [b"\xff\xfe{\x00}\x00", b"\xfe\xff\x00{\x00}"])
def test_utf_16_is_reported(tmp_path: Path, data: bytes) -> None:
    for kind in ("", *COMPRESS):
        file = tmp_path / f"rows.jsonl{kind}"
        file.write_bytes(COMPRESS[kind](data) if kind else data)
        with pytest.raises(BrokenFile, match="it looks like UTF-16") as error:
            compressed.text(file)
        assert error.value.line == 1


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("rows.jsonl", ".jsonl"),
        ("rows.JSONL.GZ", ".jsonl"),
        ("a.b.csv.zst", ".csv"),
        ("rows.gz", ""),
        ("rows", ""),
        (".gz", ""),
        (".jsonl", ""),
        ("rows.tar.gz", ".tar"),
        ("rows.gz.gz", ".gz"),
    ],
)
def test_the_suffix_says_what_a_file_holds(name: str, suffix: str) -> None:
    assert compressed.suffix(Path(name)) == suffix
