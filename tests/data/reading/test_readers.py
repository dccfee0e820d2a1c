from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from mlflow_ft.data.reading import json_list, parsing, readers
from mlflow_ft.data.reading.readers import Unreadable, read_file
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row
from tests.rarely import some_always

ROWS = [{"a": "one"}, {"a": "two\nlines"}, {"a": "drei 🙂"}]
BOM = b"\xef\xbb\xbf"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def lines(rows: Sequence[Row | Unreadable]) -> list[int]:
    return [row.line for row in rows]


def seen(rows: Sequence[Row | Unreadable]) -> list[Any]:
    """What was read of every row: its columns, or why there are none."""
    return [dict(row.values) if isinstance(row, Row) else row.reason for row in rows]


def stream_format(rows: list[dict[str, Any]], batch: int = 2) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def file_format(rows: list[dict[str, Any]], batch: int = 2) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def parquet_format(rows: list[dict[str, Any]], group: int = 2) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=group)
    return sink.getvalue()


# --- what is well formed

PRETTY = json.dumps(ROWS, indent=2)
JSONL = "\n" + '{"a": "one"}\n\n   \n{"a": "two\\nlines"}\n{"a": "drei 🙂"}'
CSV = 'a\none\n"two\nlines"\n\ndrei 🙂\n'
READABLE: dict[str, tuple[str | bytes, list[int]]] = {
    "pretty.json": (PRETTY, [2, 5, 8]),
    "compact.json": (json.dumps(ROWS), [1, 1, 1]),
    "lines-under-another-name.json": (JSONL, [2, 5, 6]),
    "pretty-objects.json": ("\n\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 5, 9]),
    "objects-on-one-line.json": ("".join(map(json.dumps, ROWS)), [1, 1, 1]),
    "objects-on-two-lines.json": (" ".join(map(json.dumps, ROWS[:2])) + "\n" + json.dumps(ROWS[2]), [1, 1, 2]),
    "returns.json": (JSONL.replace("\n", "\r"), [1, 1, 1]),
    "far-down.json": ("\n" * 300_000 + PRETTY, [300_002, 300_005, 300_008]),
    "far-right.json": (" " * 300_000 + PRETTY, [2, 5, 8]),
    "blank-lines.jsonl": (JSONL, [2, 5, 6]),
    "windows.jsonl": (JSONL.replace("\n", "\r\n"), [2, 5, 6]),
    "windows.json": (PRETTY.replace("\n", "\r\n"), [2, 5, 8]),
    "windows.csv": (CSV.replace("\n", "\r\n").replace("two\r\n", "two\n"), [2, 3, 6]),
    "returns.csv": (CSV.replace("\n", "\r").replace("two\r", "two\n"), [2, 3, 6]),
    "upper-case.NDJSON": (JSONL, [2, 5, 6]),
    "bom.jsonl": (BOM + JSONL.lstrip().encode(), [1, 4, 5]),
    "bom.json": (BOM + PRETTY.encode(), [2, 5, 8]),
    "bom-and-lines.json": (BOM + JSONL.encode(), [2, 5, 6]),
    "bom-and-objects.json": (
        BOM + b"\n{\n}" * 0 + "\n".join(json.dumps(r, indent=1) for r in ROWS).encode(),
        [1, 4, 7],
    ),
    "bom.csv": (BOM + CSV.encode(), [2, 3, 6]),
    "blank-first.csv": ("\n\r\n" + CSV, [4, 5, 8]),
    "quoted-newline-and-blank-line.csv": (CSV, [2, 3, 6]),
    "quoted-newline.tsv": (CSV, [2, 3, 6]),
    "no-last-newline.csv": (CSV.rstrip("\n"), [2, 3, 6]),
    "rows.parquet": (parquet_format(ROWS), [1, 2, 3]),
    "rows.arrow": (stream_format(ROWS), [1, 2, 3]),
    "file.arrow": (file_format(ROWS), [1, 2, 3]),
    "rows.feather": (file_format(ROWS), [1, 2, 3]),
    "lines.jsonl.gz": (gzip.compress(JSONL.encode()), [2, 5, 6]),
    "list.json.XZ": (lzma.compress(PRETTY.encode()), [2, 5, 8]),
    "fields.csv.bz2": (bz2.compress(BOM + CSV.encode()), [2, 3, 6]),
    "lines.json.zst": (pyarrow.compress(JSONL.encode(), codec="zstd", asbytes=True), [2, 5, 6]),
}


@pytest.mark.parametrize("name", READABLE)
def test_rows_are_read_with_the_line_on_which_they_begin(tmp_path: Path, name: str) -> None:
    content, expected = READABLE[name]
    rows = list(read_file(write(tmp_path, name, content)))
    assert seen(rows) == ROWS
    assert lines(rows) == expected
    assert rows[0].place == f"{tmp_path / name}:{expected[0]}"


def test_every_kind_of_file_is_read_here() -> None:
    known = {Path(name.lower().removesuffix(".gz")).suffix for name in READABLE}
    assert known >= set(readers.READERS) - {".txt"}


@pytest.mark.parametrize("kind", ["", ".gz"])
def test_lines_of_text_are_rows(tmp_path: Path, kind: str) -> None:
    raw = BOM + 'one\n\n  \n two " {\r\n\u2028three\x85\n\tfour'.encode()
    rows = list(read_file(write(tmp_path, f"rows.txt{kind}", gzip.compress(raw) if kind else raw)))
    assert seen(rows) == [{"text": "one"}, {"text": ' two " {'}, {"text": "\u2028three\x85"}, {"text": "\tfour"}]
    assert lines(rows) == [1, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.TSV", "a\tb, c;d\n1\t2, 3;\n", {"a": "1", "b, c;d": "2, 3;"}),
        ("rows.csv", "a;b\n1,5;2\n", {"a": "1,5", "b": "2"}),
        ("rows.csv", "a;b,c\n1;1,2\n", {"a;b": "1;1", "c": "2"}),
        ("rows.csv", '"a, x";b\n1;2\n', {"a, x": "1", "b": "2"}),
        ("rows.csv", '"a;x",b\n1,2\n', {"a;x": "1", "b": "2"}),
        ("rows.csv", '"a;x"\n1;2\n', {"a;x": "1;2"}),
        ("rows.csv", "\n\na;b\n1;2\n", {"a": "1", "b": "2"}),
        ("rows.csv", "a\tb; c\n1\t2, 3;\n".replace(";", "|"), {"a": "1", "b| c": "2, 3|"}),
        ("rows.csv", "a|b\n1, 2|3\n", {"a": "1, 2", "b": "3"}),
        ("rows.csv", "sep=;\r\na,x;b\r\n1;2\r\n", {"a,x": "1", "b": "2"}),
        ("rows.csv", "\ufeffsep=,\na,b\n1,2\n", {"a": "1", "b": "2"}),
        ("rows.csv", '"sep=|"\na|b\n1|2\n', {"a": "1", "b": "2"}),
        ("rows.csv", "sep=,b\n1,2\n", {"sep=": "1", "b": "2"}),
        ("rows.csv", ',a\n0,"say ""hi"", now"\n', {"": "0", "a": 'say "hi", now'}),
        ("rows.csv", 'a,b\n,""\n', {"a": "", "b": ""}),
        ("rows.csv", "a,b\n a , b\n", {"a": " a ", "b": " b"}),
        ("rows.csv", 'a,b\n5" pipe,\x00\n', {"a": '5" pipe', "b": "\x00"}),
        ("rows.csv", "a\n\\ud800\n", {"a": "\\ud800"}),
    ],
)
def test_fields_are_read(tmp_path: Path, name: str, content: str, expected: dict[str, str]) -> None:
    assert seen(list(read_file(write(tmp_path, name, content)))) == [expected]


def test_rows_may_have_other_columns_than_the_ones_before(tmp_path: Path) -> None:
    rows = [{"a": None}, {}, {"b": [None, {"c": None}]}, {"a": 1, "b": "x"}, {"a": {"a": {"a": []}}}, {"é": "", "": 0}]
    assert seen(list(read_file(write(tmp_path, "rows.json", json.dumps(rows))))) == rows
    assert seen(list(read_file(write(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)))))) == rows


def test_nested_columns_of_tables_are_python_values(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"m": [{"role": "user"}, None], "n": {"x": [1.5, None]}, "b": b"\xff", "t": True},
        {"m": None, "n": None, "b": None, "t": None},
        {"m": [], "n": {}, "b": b"", "t": False},
    ]
    padded = [{**rows[0], "m": [{"role": "user", "content": None}, None]}, rows[1], {**rows[2], "n": {"x": None}}]
    for name, data in {"a.parquet": parquet_format(padded), "b.arrow": stream_format(padded)}.items():
        assert seen(list(read_file(write(tmp_path, name, data)))) == rows


def test_numbers_that_json_has_no_name_for(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.json"):
        (row,) = read_file(write(tmp_path, name, '{"a": NaN, "b": -Infinity, "c": 1e999}\n'))
        assert isinstance(row, Row)
        assert math.isnan(row.values["a"])
        assert (row.values["b"], row.values["c"]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", "[ ]"),
        ("rows.json", "\n \n"),
        ("rows.jsonl", "\n \n"),
        ("rows.jsonl", BOM),
        ("rows.json", BOM),
        ("rows.csv", BOM),
        ("rows.csv", "a,b\n"),
        ("rows.csv", "\n\n"),
        ("rows.txt", " \n"),
        ("rows.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("rows.csv.xz", lzma.compress(b"")),
        ("rows.json.bz2", bz2.compress(b"")),
        ("rows.parquet", parquet_format([{"a": 1}][:0])),
        ("rows.arrow", stream_format([{"a": 1}][:0])),
        ("rows.feather", file_format([{"a": 1}][:0])),
    ],
)
def test_a_file_may_have_no_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Whoever asked for them says so: another file of the same source may have some."""
    assert list(read_file(write(tmp_path, name, content))) == []


# --- one bad row

LATIN = "é".encode("latin-1")
BAD_ROWS: dict[str, tuple[str | bytes, list[Any]]] = {
    "cut.jsonl": ('{"a": 1}\n\n{"a": \n{"a": 2}', ["malformed JSON: Expecting value", {"a": 2}]),
    "unquoted.jsonl": ('{"a": 1}\n{a: 1}\n{"a": 2}', ["malformed JSON: Expecting property name", {"a": 2}]),
    "open.jsonl": ('{"a": 1}\n{"a": "x\n{"a": 2}', ["malformed JSON: Invalid control character", {"a": 2}]),
    "two.jsonl": ('{"a": 1}\n{"a": 1} {"a": 3}\n', ["malformed JSON: extra data after the value (column 9)"]),
    "mark.jsonl": (b'{"a": 1}\n' + BOM + b'{"a": 1}\n{"a": 2}', ["malformed JSON: Expecting value", {"a": 2}]),
    "deep.jsonl": ('{"a": 1}\n' + "[" * 100_000 + '\n{"a": 2}', ["malformed JSON: nested too deeply", {"a": 2}]),
    "levels.jsonl": ('{"a": 1}\n' + "[" * 101 + "]" * 101, ["nested more than 100 levels deep"]),
    "digits.jsonl": (
        '{"a": 1}\n{"a": ' + "1" * 5000 + '}\n{"a": 2}',
        ["contains a number with too many digits", {"a": 2}],
    ),
    "number.jsonl": ('{"a": 1}\n7\n{"a": 2}', ["a row must be an object, but this is a number", {"a": 2}]),
    "null.jsonl": ('{"a": 1}\nnull\n', ["a row must be an object, but this is null"]),
    "list.jsonl": ('{"a": 1}\n[{"a": 3}]\n', ["a row must be an object, but this is a list"]),
    "element.json": ('[\n{"a": 1},\n"b",\n{"a": 2}]', ["a row must be an object, but this is a text", {"a": 2}]),
    "twice.jsonl": ('{"a": 1}\n{"a": 1, "a": 1}\n{"a": 2}', ["malformed JSON: the key 'a' occurs twice", {"a": 2}]),
    "inner.jsonl": ('{"a": 1}\n{"a": [{"b": 1, "b": 2}]}', ["malformed JSON: the key 'b' occurs twice"]),
    "twice.json": ('[{"a": 1}, {"a": 1, "a": 1}, {"a": 2}]', ["malformed JSON: the key 'a' occurs twice", {"a": 2}]),
    "half.jsonl": ('{"a": 1}\n{"a": "\\ud800"}\n{"a": 2}', ["contains an unpaired surrogate (\\ud800)", {"a": 2}]),
    "upper.jsonl": ('{"a": 1}\n{"a": ["\\uDFFF"]}', ["contains an unpaired surrogate (\\udfff)"]),
    "half.json": ('[{"a": 1}, {"\\udc00": 1}, {"a": 2}]', ["contains an unpaired surrogate (\\udc00)", {"a": 2}]),
    "first.json": ('{"a": 1}\n{"a": }\n{"a": 2}', ["malformed JSON: Expecting value (column 7)", {"a": 2}]),
    "latin.jsonl": (b'{"a": 1}\n{"a": "' + LATIN + b'"}\n{"a": 2}', ["not UTF-8 text", {"a": 2}]),
    "latin.json": (b'[{"a": 1},\n{"a": "' + LATIN + b'"},\n{"a": 2}]', ["not UTF-8 text", {"a": 2}]),
    "latin.txt": (b"one\n" + LATIN + b"\ntwo", ["not UTF-8 text", {"text": "two"}]),
    "latin.csv": (b"a,b\n1,1\n" + LATIN + b",1\n2,2", ["not UTF-8 text", {"a": "2", "b": "2"}]),
    "half.csv": (b"a,b\n1,1\n1,\xed\xa0\x80\n2,2", ["not UTF-8 text", {"a": "2", "b": "2"}]),
    "short.csv": (
        "a,b\n1,2\n3\n4,5",
        ["the row has a different number of fields from the header (1, not 2)", {"a": "4"}],
    ),
    "long.csv": ('a,b\n"1\n1",2\n3,4,5\n', ["the row has a different number of fields from the header (3, not 2)"]),
    "quote.csv": ('a,b\n1,2\n3,"4"x\n5,6', ["malformed CSV: ',' expected after '\"'", {"a": "5", "b": "6"}]),
    "open-at-the-end.csv": ('a,b\n1,2\n3,"4', ["malformed CSV: unexpected end of data"]),
}
AT = {"cut.jsonl": 3, "twice.json": 1, "half.json": 1, "element.json": 3, "long.csv": 4}
"""Where the bad row is on another line than the second, or the third of a file with a header."""


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_reported_with_its_line_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    content, expected = BAD_ROWS[name]
    file = write(tmp_path, name, content)
    rows = list(read_file(file, shown="shown"))
    assert len(rows) == 1 + len(expected)
    assert isinstance(rows[0], Row)
    bad = rows[1]
    assert isinstance(bad, Unreadable)
    assert bad.reason.startswith(expected[0])
    assert bad.place == f"shown:{AT.get(name, 3 if name.endswith('.csv') else 2)}"
    assert not bad.converting
    for row, values in zip(rows[2:], expected[1:], strict=True):
        assert isinstance(row, Row)
        assert values.items() <= row.values.items()


@pytest.mark.parametrize("first", ['{"a": }', "{a: 1}", '{"a": "x', '{"a": 1} x', '{"a": 1}}', "nonsense", "\xe9", "7"])
def test_the_first_line_of_a_json_file_may_be_bad_as_well(tmp_path: Path, first: str) -> None:
    file = write(tmp_path, "rows.json", first.encode("latin-1") + b'\n{"a": 1}\n{"a": 2}\n')
    rows = list(read_file(file))
    assert lines(rows) == [1, 2, 3]
    assert isinstance(rows[0], Unreadable)
    assert seen(rows)[1:] == [{"a": 1}, {"a": 2}]


def test_the_first_line_of_a_json_file_may_be_long_or_cut(tmp_path: Path) -> None:
    long = json.dumps({"a": [1] * 50_000})
    rows = list(read_file(write(tmp_path, "rows.json", long + '\n{"a": }\n{"a": 1}')))
    assert [isinstance(row, Row) for row in rows] == [True, False, True]
    (row,) = read_file(write(tmp_path, "rows.json", '\n{"a": 1,'))
    assert isinstance(row, Unreadable)
    assert row.line == 2


def test_the_line_of_bad_text_is_found_far_into_a_file(tmp_path: Path) -> None:
    content = b'{"a": "0123456789"}\n' * 50_000 + b'{"a": "\xff"}\n{"a": 1}\n'
    for name, data in {
        "rows.jsonl": content,
        "rows.json": b"[" + content.strip().replace(b"\n", b",\n") + b"]",
    }.items():
        rows = list(read_file(write(tmp_path, name, data)))
        assert len(rows) == 50_002
        (bad,) = (row for row in rows if isinstance(row, Unreadable))
        assert bad.line == 50_001


def test_a_line_that_is_too_long_is_reported_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(json_list, "PIECE", 16)
    fits, over = '{"a": "' + "x" * 90 + '"}', '{"a": "' + "x" * 92 + '"}'
    contents = {
        "rows.jsonl": f'{fits}\n{over}\n{{"a": "last"}}\n',
        "far.jsonl": f'{fits}\n{over}{"y" * 10_000}\n{{"a": "last"}}\n',
        "rows.json": f'[{fits},\n{over},\n{{"a": "last"}}]',
        "rows.txt": f"{fits}\n{over}\nlast",
        "rows.csv": f"a\n{'x' * 99}\n{'x' * 100}\nlast",
        "far.csv": f'a\n{"x" * 99}\n{"x" * 10_000}"quoted"\nlast',
        "quoted.csv": f'a\n"{"x" * 97}"\n"{"x" * 98}"\nlast',
    }
    for name, content in contents.items():
        rows = list(read_file(write(tmp_path, name, content)))
        assert [isinstance(row, Row) for row in rows] == [True, False, True], name
        assert seen(rows)[1] == "longer than 100 bytes, too long for a row"
        assert "last" in seen(rows)[2].values()
        assert lines(rows) == ([2, 3, 4] if name.endswith(".csv") else [1, 2, 3])


def test_a_line_of_the_real_limit(tmp_path: Path) -> None:
    begin = b'{"a": 1}\n{"b": "'
    content = begin + b"x" * (parsing.MAX_ROW_BYTES - 8) + b'"}\n' + b'{"a": 2}\n'
    assert seen(list(read_file(write(tmp_path, "rows.jsonl", content)))) == [
        {"a": 1},
        "longer than 67,108,864 bytes, too long for a row",
        {"a": 2},
    ]


def test_values_of_a_table_that_are_no_python_values_are_reported_row_by_row(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 1, 3, 4)))
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"a\xff\xfeb")])
    columns = {
        "text": (text, "UTF"),
        "time": (pyarrow.array([1, 2**62, 2], pyarrow.timestamp("us")), "out of range"),
        "day": (pyarrow.array([1, 10**9, 2], pyarrow.date32()), "days"),
    }
    for column, (values, reason) in columns.items():
        table = pyarrow.table({"number": [1, 2, 3], column: values})
        with ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
            writer.write_table(table)
        parquet.write_table(table, tmp_path / "rows.parquet")
        for name in ("rows.arrow", "rows.parquet"):
            rows = list(read_file(tmp_path / name))
            assert [isinstance(row, Row) for row in rows] == [True, False, True]
            assert lines(rows) == [1, 2, 3]
            assert "its values cannot be read" in seen(rows)[1]
            assert reason in seen(rows)[1]


def test_a_struct_that_has_a_field_twice_is_reported(tmp_path: Path) -> None:
    fields = pyarrow.struct([("x", pyarrow.int64()), ("x", pyarrow.int64())])
    struct = pyarrow.StructArray.from_arrays([pyarrow.array([1]), pyarrow.array([2])], fields=list(fields))
    table = pyarrow.table({"a": struct})
    with ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    (row,) = read_file(tmp_path / "rows.arrow")
    assert isinstance(row, Unreadable)


def test_a_table_that_is_nested_too_deeply_is_reported(tmp_path: Path) -> None:
    kind: Any = pyarrow.int8()
    value: list[Any] = [1]
    for _ in range(101):
        kind, value = pyarrow.list_(kind), [value]
    table = pyarrow.table({"a": pyarrow.array(value, kind)})
    parquet.write_table(table, tmp_path / "rows.parquet", store_schema=False)
    with pytest.raises(DataError, match=r"rows\.parquet: its columns are nested more than 100 levels deep"):
        list(read_file(tmp_path / "rows.parquet"))


def test_a_stream_that_was_cut_between_two_batches_is_reported(tmp_path: Path) -> None:
    """Nothing but the missing end mark says that there were more."""
    rows = [{"a": number} for number in range(6)]
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table[:2])
        cut = sink.getvalue()
        writer.write_table(table[2:])
    read = list(read_file(write(tmp_path, "rows.arrow", cut)))
    assert seen(read[:2]) == rows[:2]
    assert lines(read) == [1, 2, 3]
    assert "rows may be missing" in seen(read)[2]


def test_streams_from_before_2019_have_another_end_mark(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with ipc.new_stream(
        tmp_path / "rows.arrow", table.schema, options=ipc.IpcWriteOptions(use_legacy_format=True)
    ) as w:
        w.write_table(table)
    assert seen(list(read_file(tmp_path / "rows.arrow"))) == ROWS


def test_streams_may_follow_one_another(tmp_path: Path) -> None:
    rows = [{"a": number} for number in range(6)]
    read = list(read_file(write(tmp_path, "rows.arrow", stream_format(rows[:3]) + stream_format(rows[3:]))))
    assert seen(read) == rows
    assert lines(read) == [1, 2, 3, 4, 5, 6]


# --- a whole file that is bad

BROKEN: dict[str, tuple[str | bytes, str]] = {
    "list.json": ('[\n{"a": 1},\n{"a" 2}\n]', r"list\.json:3: malformed JSON: Expecting ':'"),
    "behind.json": ('[{"a": 1}]\n\nmore', r"behind\.json:3: malformed JSON: Extra data"),
    "open.json": ('[{"a": 1},\n', r"open\.json:2: malformed JSON: Expecting value"),
    "objects.json": ('{\n"a": 1}\n\n{"a" 2}', r"objects\.json:4: malformed JSON: Expecting ':'"),
    "deep.json": ('[{"a": 1},\n' + "[" * 100_000, r"deep\.json:2: malformed JSON: nested too deeply"),
    "twice.csv": ("\na,b,a\n1,2,3\n", r"twice\.csv:2: the header names a column twice: a"),
    "unnamed.csv": ("a,,\n1,2,3\n", r"unnamed\.csv:1: the header names a column twice: ''"),
    "header.csv": ('a,"b"x\n1,2\n', r"header\.csv:1: the header cannot be read: malformed CSV"),
    "latin-header.csv": (b"\xe9,b\n1,2\n", r"latin-header\.csv:1: the header is not UTF-8 text"),
    "open-quote.csv": ('a,b\n1,2\n3,"4\n5,6\n7,8\n', r"open-quote\.csv:3: malformed CSV.* never closed"),
    "quote-later.csv": ('a,b\n1,2\n3,"4\n5,6\n7,"8"\n9,10\n', r"quote-later\.csv:3: malformed CSV.* never closed"),
    "inner-quotes.csv": ('a,b\n1,"say "hi" now\n5,6"\n', r"inner-quotes\.csv:2: malformed CSV.* never closed"),
    "utf-16.jsonl": ('{"a": 1}\n'.encode("utf-16"), r"utf-16\.jsonl:1: not UTF-8 text"),
    "utf-16.json": ('[{"a": 1}]\n'.encode("utf-16"), r"utf-16\.json:1: not UTF-8 text"),
    "utf-16.csv": ("a\nb\n".encode("utf-16"), r"utf-16\.csv:1: not UTF-8 text"),
    "utf-16.txt": ("a\nb\n".encode("utf-16"), r"utf-16\.txt:1: not UTF-8 text"),
    "none.parquet": (b"PAR1 this is none", r"none\.parquet: not a readable Parquet file"),
    "none.arrow": (b"ARROW1\0\0 this is none", r"none\.arrow: not a readable Arrow file"),
    "text.arrow": (b"this is none", r"text\.arrow: not a readable Arrow file"),
    "zeros.arrow": (bytes(100), r"zeros\.arrow: not a readable Arrow file"),
    "json.feather": (b'{"a": 1}', r"json\.feather: not a readable Arrow file"),
    "rows.parquet.gz": (gzip.compress(parquet_format(ROWS)), r"rows\.parquet\.gz: not a readable Parquet file"),
    "behind.arrow": (stream_format(ROWS) + b"garbage!", r"behind\.arrow: not a readable Arrow file"),
    "empty.jsonl": ("", r"empty\.jsonl' is empty \(0 bytes\)"),
    "empty.parquet": ("", r"empty\.parquet' is empty \(0 bytes\)"),
    "empty.arrow": ("", r"empty\.arrow' is empty \(0 bytes\)"),
    "empty.json.gz": ("", r"empty\.json\.gz' is empty \(0 bytes\)"),
    "rows.xlsx": (b"PK", r"rows\.xlsx' is of an unknown kind\n.*known: \.jsonl, "),
    "rows.gz": (gzip.compress(b"{}", mtime=0), r"rows\.gz' is of an unknown kind"),
    "cut.jsonl.gz": (gzip.compress(JSONL.encode())[:-9], r"cut\.jsonl\.gz: it cannot be decompressed"),
    "cut.json.gz": (gzip.compress(PRETTY.encode())[:-9], r"cut\.json\.gz: it cannot be decompressed"),
    "cut.csv.xz": (lzma.compress(CSV.encode())[:-9], r"cut\.csv\.xz: it cannot be decompressed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_broken_as_a_whole_is_reported_with_its_place(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(DataError, match=rf"(?s)^(data (file )?')?a shown name/{message}"):
        list(read_file(write(tmp_path, name, content), shown=f"a shown name/{name}"))


def test_a_folder_or_a_missing_file_is_not_a_data_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    for name in ("rows.jsonl", "missing.jsonl"):
        with pytest.raises(DataError, match=rf"{name}' is of an unknown kind"):
            list(read_file(tmp_path / name))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather"])
def test_two_columns_of_one_name_do_not_become_one(tmp_path: Path, name: str) -> None:
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2]), pyarrow.array([3])], names=["a", "b", "a"])
    with ipc.new_file(tmp_path / name, table.schema) as writer:
        writer.write_table(table)
    if name.endswith(".parquet"):
        parquet.write_table(table, tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: it names a column twice: a"):
        list(read_file(tmp_path / name))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather"])
def test_the_name_of_a_column_that_is_not_utf_8_is_reported(tmp_path: Path, name: str) -> None:
    table = pyarrow.table({"needle": [1]})
    with ipc.new_stream(tmp_path / name, table.schema) as writer:
        writer.write_table(table)
    if name.endswith(".parquet"):
        parquet.write_table(table, tmp_path / name, store_schema=False)
    data = (tmp_path / name).read_bytes()
    assert b"needle" in data
    with pytest.raises(DataError, match=rf"{name}: not a readable \w+ file: 'utf-8' codec"):
        list(read_file(write(tmp_path, name, data.replace(b"needle", b"needl\xff"))))


def test_an_unclosed_quote_is_reported_before_the_whole_file_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 1000)
    file = write(tmp_path, "rows.csv", 'a,b\n1,2\n3,"4\n' + "5,6\n" * 100_000)
    with pytest.raises(DataError, match=r"rows\.csv:3: longer than 1,000 bytes.*; a quote .* never closed"):
        list(read_file(file))


# --- whatever stands in a file

TEXT_KINDS = [".jsonl", ".json", ".csv", ".tsv", ".txt"]
FUZZED: dict[str, bytes] = {
    "lines.jsonl": JSONL.encode(),
    "list.json": PRETTY.encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "fields.csv": b'a,b\n"one, ""1""",\xc3\xa9\n"two\r\nlines",2\nthree,"3"\n',
    "lines.txt": "one\n\u2028\nthree\n".encode(),
    "rows.parquet": parquet_format([{"a": f"é {n}", "m": [{"x": n, "y": None}, None]} for n in range(6)]),
    "stream.arrow": stream_format([{"a": f"é {n}", "m": [{"x": n, "y": None}, None]} for n in range(6)]),
    "file.arrow": file_format([{"a": f"é {n}", "m": [{"x": n, "y": None}, None]} for n in range(6)]),
}


def read_or_told(file: Path) -> list[Row | Unreadable] | None:
    """The invariant: rows, unreadable ones, or a DataError that names the file; and nothing that UTF-8 cannot hold."""
    rows: list[Row | Unreadable] = []
    told = None
    try:
        rows.extend(read_file(file))
    except DataError as error:
        told = str(error)
    if told is not None:
        assert file.name in told
        return None
    for row in rows:
        text = json.dumps(row.values, ensure_ascii=False, default=str) if isinstance(row, Row) else row.reason
        assert text
        assert "\n" not in text
        text.encode()
    assert lines(rows) == sorted(lines(rows))
    return rows


@pytest.mark.parametrize("name", FUZZED)
def test_a_file_that_is_cut_anywhere_is_read_or_reported(tmp_path: Path, name: str) -> None:
    whole = FUZZED[name]
    expected = seen(list(read_file(write(tmp_path, name, whole))))
    for end in range(1, len(whole)):
        rows = read_or_told(write(tmp_path, name, whole[:end]))
        if rows is None:
            continue
        if name.endswith((".parquet", ".arrow")):
            assert any(isinstance(row, Unreadable) for row in rows), "rows are missing, and nothing says so"
        if name.endswith((".jsonl", ".txt")):
            # every line that is still there is a row, whole or told; of text, half a line is a line
            assert len(rows) >= sum(
                bool(line.strip()) for line in whole[:end].decode("utf-8", "replace").split("\n")[:-1]
            )
        good = [value for value, row in zip(seen(rows), rows, strict=True) if isinstance(row, Row)]
        if not name.endswith((".txt", ".csv")):
            assert good == expected[: len(good)]


@pytest.mark.parametrize("name", FUZZED)
def test_a_file_that_is_damaged_anywhere_is_read_or_reported(tmp_path: Path, name: str) -> None:
    whole = FUZZED[name]
    chance = random.Random(name)
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            place = chance.randrange(len(data))
            data[place : place + chance.choice([0, 1, 1, 1, 4])] = chance.choice(
                [b"", b"\0", b"\xff", b'"', b"\n", b"\r", b"[", b"}", b",", b"\\ud800", chance.randbytes(1)]
            )
        if data:
            read_or_told(write(tmp_path, name, bytes(data)))


@settings(max_examples=300)
@given(data=st.binary(min_size=1, max_size=200), kind=st.sampled_from([*readers.READERS, ".jsonl.gz", ".csv.zst"]))
def test_any_bytes_are_read_or_reported(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    read_or_told(write(tmp_path_factory.getbasetemp(), f"bytes{kind}", data))


PIECES = st.sampled_from(
    ['{"a": 1}', "{", "}", "[", "]", '"', "\\ud800", ",", ";", ":", "a", " ", "\n", "\r", "\t", "é"]
)


def over_lines(content: str) -> bool:
    """Whether the file begins with a value that goes on over the end of a line, which is read as such."""
    begin = content.lstrip()
    try:
        return "\n" in begin[: json.JSONDecoder().raw_decode(begin)[1]]
    except json.JSONDecodeError:
        return False


@settings(max_examples=500)
@given(content=st.lists(PIECES, min_size=1, max_size=25).map("".join), kind=st.sampled_from(TEXT_KINDS))
def test_any_pieces_of_rows_are_read_or_reported(
    tmp_path_factory: pytest.TempPathFactory, content: str, kind: str
) -> None:
    rows = read_or_told(write(tmp_path_factory.getbasetemp(), f"pieces{kind}", content))
    if rows is not None and kind == ".jsonl" and not over_lines(content):
        expected = []
        for line in content.split("\n"):
            try:
                expected.append(json.loads(line) if isinstance(json.loads(line), dict) else None)
            except json.JSONDecodeError:
                expected += [None] * bool(line.strip())
        assert [dict(row.values) if isinstance(row, Row) else None for row in rows] == expected


@pytest.mark.parametrize("kind", readers.READERS)
def test_programs_pictures_and_noise_are_reported(tmp_path: Path, kind: str) -> None:
    with (Path("/proc/self/exe")).open("rb") as program:
        beginning = program.read(2**18)
    for data in (beginning, random.Random(1).randbytes(2**16), bytes(2**16), b"\xff" * 2**16, b"\n" * 9 + b"\x89PNG"):
        rows = read_or_told(write(tmp_path, f"rows{kind}", data))
        if kind != ".txt" and rows:
            assert not any(isinstance(row, Row) for row in rows)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["[", "]", "\n", ",{}", "\u2028", "\r"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=5)


@settings(max_examples=100)
@given(objects=OBJECTS, gaps=st.lists(st.sampled_from(["", "\n", " \n\n"]), min_size=5, max_size=5))
@pytest.mark.parametrize("name", ["any.jsonl", "any.json"])
def test_any_json_lines_are_read_back_with_their_lines(
    tmp_path_factory: pytest.TempPathFactory, name: str, objects: list[Any], gaps: list[str]
) -> None:
    text, expected = "", []
    for element, gap in zip(objects, gaps, strict=False):
        text += gap
        expected.append(text.count("\n") + 1)
        text += json.dumps(element, ensure_ascii=False) + "\n"
    rows = list(read_file(write(tmp_path_factory.getbasetemp(), name, text)))
    assert seen(rows) == objects
    assert lines(rows) == expected


@settings(max_examples=100)
@given(objects=OBJECTS, indent=st.sampled_from([0, 2]), before=st.sampled_from(["", "\n\n", " \t"]))
def test_any_pretty_objects_are_read_back_with_their_lines(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], indent: int, before: str
) -> None:
    texts = [json.dumps(value, indent=indent) for value in [{"on": "several lines"}, *objects]]
    rows = list(read_file(write(tmp_path_factory.getbasetemp(), "any.json", before + "\n".join(texts))))
    assert seen(rows)[1:] == objects
    sizes = [text.count("\n") + 1 for text in texts]
    assert lines(rows) == [before.count("\n") + 1 + sum(sizes[:place]) for place in range(len(texts))]


FIELDS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(['"', ",", ";", "\n", "\r\n", "\r", '",'])


@settings(max_examples=200)
@given(
    table=st.lists(st.lists(FIELDS, min_size=3, max_size=3), min_size=1, max_size=5),
    style=st.sampled_from([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\r\n")]),
    mark=st.booleans(),
    delimiter=st.sampled_from([",", ";"]),
)
def test_any_csv_is_read_back_with_its_lines(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[list[str]],
    style: tuple[Any, str],
    delimiter: str,
    *,
    mark: bool,
) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, quoting=style[0], delimiter=delimiter, lineterminator=style[1])
    writer.writerow(["a", "b", "c"])
    expected = []
    for fields in table:
        expected.append(len(sink.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")))
        writer.writerow(fields)
    content = BOM * mark + sink.getvalue().encode()
    rows = list(read_file(write(tmp_path_factory.getbasetemp(), "any.csv", content)))
    assert seen(rows) == [dict(zip("abc", fields, strict=True)) for fields in table]
    assert lines(rows) == expected


# --- memory


def many(count: int) -> list[dict[str, Any]]:
    chance = random.Random(1)
    return [{"a": chance.randbytes(40).hex(), "m": [{"n": number}] * 2} for number in range(count)]


def fields(rows: list[dict[str, Any]]) -> bytes:
    return "".join(["a,m\n", *(f'{row["a"]},"{row["m"]}"\n' for row in rows)]).encode()


LARGE: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "lines.json": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "objects.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "rows.csv": fields,
    "rows.csv.gz": lambda rows: gzip.compress(fields(rows), 1),
    "rows.jsonl.xz": lambda rows: lzma.compress(json.dumps(rows).replace("]}, ", "]}\n").encode(), preset=0),
    "one-group.parquet": lambda rows: parquet_format(rows, 10**9),
    "groups.parquet": lambda rows: parquet_format(rows, 2000),
    "one-batch.arrow": lambda rows: stream_format(rows, 10**9),
    "file.arrow": lambda rows: file_format(rows, 10**9),
}


@pytest.mark.parametrize(
    "name", some_always(LARGE, "rows.jsonl", "rows.json", "rows.csv", "one-group.parquet", "one-batch.arrow")
)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str) -> None:
    """Python's own memory, and Arrow's, which Python does not see."""
    peaks = []
    for count in (500, 8_000, 32_000):  # the first warms up what is made once
        file = write(tmp_path, name, LARGE[name](many(count)))
        tracemalloc.start()
        before, arrow = pyarrow.total_allocated_bytes(), 0
        rows_read = 0
        for row in read_file(file):
            rows_read += isinstance(row, Row)
            arrow = max(arrow, pyarrow.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
        assert rows_read >= count - 2
    assert peaks[2] < 1.6 * peaks[1]


def test_a_reader_that_is_left_early_closes_its_file(tmp_path: Path) -> None:
    def open_files() -> set[str]:
        return {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}

    for name, content in LARGE.items():
        file = write(tmp_path, name, content(many(20_000)))
        rows = read_file(file)
        next(rows)
        assert str(file) in open_files()
        rows.close()  # type: ignore[attr-defined]  # a generator
        assert str(file) not in open_files()
