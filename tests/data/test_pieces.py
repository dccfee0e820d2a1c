"""Sources read in pieces: the same rows, at the same lines, as in one pass."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import pieces, sources
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.reading.shapes import EACH, Shape
from mlflow_ft.rows import Row

LINES = [b"\xef\xbb\xbf" + b'{"text": "first"}', b"", b'{"text": 1', b'{"text": "\xff"}', b"  ", b"[1, 2]"]
LINES += [json.dumps({"text": f"row {number}" * number}).encode() for number in range(9)]


def in_pieces(paths: list[Path], size: int, **settings: object) -> tuple[int, list[tuple[int, Row | Unreadable]]]:
    """The number of pieces, and every row with its index."""
    opened = [sources.open_source(str(path), DataSection(path=str(path), **settings)) for path in paths]  # type: ignore[arg-type]  # any
    cut = pieces.cut(opened, size=size)
    placed = pieces.placed(cut, (pieces.measure(opened[piece.source], piece) for piece in cut))
    rows = [
        (piece.index + number, row)
        for piece in placed
        for number, row in enumerate(pieces.rows(opened[piece.source], piece))
    ]
    return len(cut), rows


def whole(paths: list[Path], **settings: object) -> list[tuple[int, Row | Unreadable]]:
    opened = [sources.open_source(str(path), DataSection(path=str(path), **settings)) for path in paths]  # type: ignore[arg-type]  # any
    return list(enumerate(row for source in opened for row in source.rows()))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\n"], ids=repr)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt"])
def test_a_file_of_lines_in_parts_of_any_size(tmp_path: Path, name: str, end: bytes) -> None:
    file, other = tmp_path / name, tmp_path / "other.jsonl"
    file.write_bytes(b"\n".join(LINES) + end)
    other.write_bytes(b'{"text": "other"}\n')
    expected = whole([file, other, file])
    assert {type(row) for _, row in expected} == {Row, Unreadable}
    counts = set()
    for size in (1, 2, 17, 18, 19, 40, 100, 10_000):
        count, rows = in_pieces([file, other, file], size)
        counts.add(count)
        assert rows == expected
    assert min(counts) == 3
    assert max(counts) > 2 * len(LINES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.jsonl", b'[\n{"text": "a"},\n{"text": "b"}\n]'),
        ("list.json", b'[{"text": "a"}, {"text": "b"}]'),
        ("spread.json", b'{"text":\n"a"}\n{"text":\n"b"}'),
        ("rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n', mtime=0)),
        ("rows.csv", b'text\n"a\nb"\nc\n'),
    ],
)
def test_other_files_are_one_piece(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    count, rows = in_pieces([file], 1)
    assert count == 1
    assert rows == whole([file])
    assert len(rows) == 2


def test_the_first_rows_of_a_source_are_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(LINES))
    count, rows = in_pieces([file, file], 1, max_rows=3)
    assert count == 2
    assert rows == whole([file, file], max_rows=3)
    assert len(rows) == 6


def test_lines_with_several_rows_each(tmp_path: Path) -> None:
    """Where rows are within lines, a piece has as many as its lines contain."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"rows": [{"text": f"{number}"}] * number}) + "\n" for number in range(5)))
    opened = sources.open_source(str(file), DataSection(path=str(file)))
    shaped = dataclasses.replace(opened, shape=Shape(steps=("rows", EACH)))
    cut = pieces.cut([shaped], size=1)
    placed = list(pieces.placed(cut, (pieces.measure(shaped, piece) for piece in cut)))
    assert [piece.index for piece in placed] == [0, 1, 2, 4, 7]
    assert [row for piece in placed for row in pieces.rows(shaped, piece)] == list(shaped.rows())
