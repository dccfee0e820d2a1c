from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import sources
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row

ROWS = [{"a": "one"}, {"a": "two\nlines"}, {"a": "three"}]


def read(file: Path | str, **about: Any) -> list[Row]:
    return sources.read(str(file), DataSection(**about))


def lines(rows: list[Row]) -> list[int]:
    return [row.line for row in rows]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


PRETTY = json.dumps(ROWS, indent=2)
JSONL = "\n" + '{"a": "one"}\n\n   \n{"a": "two\\nlines"}\n{"a": "three"}'
CSV = 'a\none\n"two\nlines"\n\nthree\n'
READABLE = {
    "pretty.json": (PRETTY, [2, 5, 8]),
    "compact.json": (json.dumps(ROWS), [1, 1, 1]),
    "lines-under-another-name.json": (JSONL, [2, 5, 6]),
    "blank-lines.jsonl": (JSONL, [2, 5, 6]),
    "windows.jsonl": (JSONL.replace("\n", "\r\n"), [2, 5, 6]),
    "upper-case.NDJSON": (JSONL, [2, 5, 6]),
    "bom.jsonl": (b"\xef\xbb\xbf" + JSONL.lstrip().encode(), [1, 4, 5]),
    "bom.json": (b"\xef\xbb\xbf" + PRETTY.encode(), [2, 5, 8]),
    "quoted-newline-and-blank-line.csv": (CSV, [2, 3, 6]),
    "bom.csv": (b"\xef\xbb\xbf" + CSV.encode(), [2, 3, 6]),
}


@pytest.mark.parametrize("name", READABLE)
def test_rows_are_read_with_the_line_on_which_they_begin(tmp_path: Path, name: str) -> None:
    content, expected = READABLE[name]
    rows = read(write(tmp_path, name, content))
    assert [dict(row.values) for row in rows] == ROWS
    assert lines(rows) == expected
    assert rows[0].place == f"{tmp_path / name}:{expected[0]}"


def test_tabs_separate_the_fields_of_a_tsv_file(tmp_path: Path) -> None:
    assert dict(read(write(tmp_path, "rows.TSV", "a\tb, c\n1\t2, 3\n"))[0].values) == {"a": "1", "b, c": "2, 3"}


def test_parquet_rows_have_their_number(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=2)
    rows = read(tmp_path / "rows.parquet")
    assert [dict(row.values) for row in rows] == ROWS
    assert lines(rows) == [1, 2, 3]


MALFORMED = {
    "line.jsonl": ('{"a": 1}\n\n{"a": \n', r"line\.jsonl:3: malformed JSON: Expecting value"),
    "list.json": ('[\n{"a": 1},\n{"a" 2}\n]', r"list\.json:3: malformed JSON: Expecting ':'"),
    "behind.json": ('[{"a": 1}]\n\nmore', r"behind\.json:3: malformed JSON: Extra data"),
    "open.json": ('[{"a": 1},\n', r"open\.json:\d: malformed JSON"),
    "deep.jsonl": ('{"a": 1}\n' + "[" * 100_000, r"deep\.jsonl:2: malformed JSON"),
    "number.jsonl": ('{"a": 1}\n7\n', r"number\.jsonl:2: a row must be an object, and this is int"),
    "element.json": ('[\n{"a": 1},\n"b"\n]', r"element\.json:3: a row must be an object, and this is str"),
    "short.csv": ("a,b\n1,2\n3\n", r"short\.csv:3: the row has another number of fields"),
    "long.csv": ('a,b\n"1\n1",2\n3,4,5\n', r"long\.csv:4: the row has another number of fields"),
    "twice.csv": ("a,b,a\n1,2,3\n", r"twice\.csv:1: the header names a column twice: a"),
    "quote.csv": ('a,b\n1,2\n3,"4"x\n', r"quote\.csv:3: malformed CSV"),
    "open-quote.csv": ('a,b\n1,2\n3,"4\n', r"open-quote\.csv:3: malformed CSV"),
    "latin.jsonl": ('{"a": 1}\n{"a": "é"}\n'.encode("latin-1"), r"latin\.jsonl:2: not UTF-8 text"),
    "latin.json": ('[{"a": 1},\n{"a": "é"}]\n'.encode("latin-1"), r"latin\.json:2: not UTF-8 text"),
    "latin.csv": ("a\nb\né\n".encode("latin-1"), r"latin\.csv:3: not UTF-8 text"),
    "utf-16.jsonl": ('{"a": 1}\n'.encode("utf-16"), r"utf-16\.jsonl:1: not UTF-8 text"),
    "none.parquet": (b"PAR1 this is none", r"none\.parquet is no Parquet file"),
    "empty.jsonl": ("", r"empty\.jsonl' is empty \(0 bytes\)"),
    "blank.jsonl": ("\n \n", r"blank\.jsonl' has no rows"),
    "none.json": ("[ ]", r"none\.json' has no rows"),
    "header.csv": ("a,b\n", r"header\.csv' has no rows"),
    "rows.xlsx": (b"PK", r"rows\.xlsx' is of no known kind\n.*known: \.jsonl, "),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path, name: str) -> None:
    content, message = MALFORMED[name]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, name, content))


def test_the_line_of_bad_text_is_found_far_into_a_file(tmp_path: Path) -> None:
    """Text is decoded in pieces; the byte that Python names is counted from the piece's beginning."""
    content = b'{"a": "0123456789"}\n' * 5000 + b'{"a": "\xff"}\n'
    with pytest.raises(DataError, match=r"rows\.jsonl:5001: not UTF-8 text"):
        read(write(tmp_path, "rows.jsonl", content))


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="of no known kind"):
        read(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="of no known kind"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "./rows", "~/no-such-rows", "~no-such-user/rows.csv", "x" * 300 + ".csv"]
)
def test_a_file_that_is_not_there_is_told_with_the_folder_that_was_looked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no data file") as error:
        read(name)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["owner/no-such-rows", "rows.txt", "{not a name}", "x" * 300])
def test_a_hub_id_without_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is no file, and the Hub does not give it") as error:
        read(name)
    assert f"looked for the file in {tmp_path}" in str(error.value)


@pytest.mark.parametrize(("max_rows", "expected"), [(2, 2), (3, 3), (9, 3)])
def test_max_rows(tmp_path: Path, max_rows: int, expected: int) -> None:
    assert len(read(write(tmp_path, "rows.csv", CSV), max_rows=max_rows)) == expected


def test_what_lies_behind_max_rows_is_not_read(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": 2}\nbroken'), max_rows=2)) == 2


def test_paths_of_the_demo_are_inside_the_package() -> None:
    train, held_out = sources.paths(DataSection())
    assert held_out is not None
    assert read(train)
    assert read(held_out)
    assert sources.paths(DataSection(eval_path="mine.jsonl"))[1] == "mine.jsonl"
    assert sources.paths(DataSection(path="rows.jsonl")) == ("rows.jsonl", None)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["[", "]", "\n", ",{}", "\u2028", "\r"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    objects=OBJECTS,
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    before=st.sampled_from(["", "\n\n", " \t"]),
)
def test_any_list_of_objects_is_read_back_with_its_lines(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], indent: int | None, *, ascii_only: bool, before: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    text = before + json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    file.write_bytes(text.encode())
    rows = read(file)
    assert [row.values for row in rows] == objects
    written = text.split("\n")
    assert all(written[row.line - 1].lstrip(" \t[,").startswith("{") for row in rows)
    if indent is not None:
        # Each object of a pretty list ends before the next begins, so every object has lines of its own.
        sizes = [json.dumps(one, indent=indent).count("\n") + 1 for one in objects]
        assert lines(rows) == [before.count("\n") + 2 + sum(sizes[:place]) for place in range(len(objects))]


@settings(max_examples=50, deadline=None)
@given(objects=OBJECTS, gaps=st.lists(st.sampled_from(["", "\n", " \n\n"]), min_size=5, max_size=5))
def test_any_json_lines_are_read_back_with_their_lines(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], gaps: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    text, expected = "", []
    for one, gap in zip(objects, gaps, strict=False):
        text += gap
        expected.append(text.count("\n") + 1)
        text += json.dumps(one, ensure_ascii=False) + "\n"
    file.write_bytes(text.encode())
    rows = read(file)
    assert [row.values for row in rows] == objects
    assert lines(rows) == expected
