"""Every type of Arrow's is the Python value that it means, or is named as what it is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import hub, sources
from mlflow_ft.data.reading import arrow_rows
from mlflow_ft.data.reading.arrow_tables import TableRow
from mlflow_ft.data.reading.arrow_values import EXTENSION
from mlflow_ft.data.reading.readers import read_file
from mlflow_ft.rows import Opaque, Row

ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture(autouse=True, scope="module")
def _slices() -> Iterator[None]:
    """Batches are read in slices of two rows: what a slice begins with must not be passed over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_rows, "BATCH", 2)
        yield


def as_arrow(folder: Path, table: pa.Table) -> Path:
    with ipc.new_stream(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "rows.arrow"


def as_parquet(folder: Path, table: pa.Table) -> Path:
    parquet.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def values(file: Path) -> list[dict[str, Any]]:
    rows = list(read_file(file))
    assert all(isinstance(row, Row) for row in rows), rows
    return [dict(row.values) for row in rows if isinstance(row, Row)]


def column(folder: Path, array: Any, field: pa.Field | None = None) -> list[Any]:
    """What an array is read as, from a file."""
    schema = pa.schema([field or pa.field("x", array.type)])
    return [row["x"] for row in values(as_arrow(folder, pa.Table.from_arrays([array], schema=schema)))]


def extension(kind: Any, storage: Any) -> Any:
    return pa.ExtensionArray.from_storage(kind, storage)


JSON = ['{"a": null, "b": [1, null]}', None, '"text"', "null", "7", "[]"]
PARSED = [{"a": None, "b": [1, None]}, None, "text", None, 7, []]
TYPES: dict[str, tuple[Any, list[Any]]] = {
    "null": (pa.nulls(3), [None] * 3),
    "text": (pa.array(["a", None, "é"]), ["a", None, "é"]),
    "large text": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "text view": (pa.array(["a", None, "b" * 30], pa.string_view()), ["a", None, "b" * 30]),
    "bytes": (pa.array([b"\xff", None], pa.binary_view()), [b"\xff", None]),
    "half": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "decimal": (pa.array([Decimal("3.50"), None], pa.decimal128(5, 2)), [Decimal("3.50"), None]),
    "date": (pa.array([date(2024, 5, 1), None]), [date(2024, 5, 1), None]),
    "timestamp": (pa.array([0, None], pa.timestamp("s", "UTC")), [datetime(1970, 1, 1, tzinfo=UTC), None]),
    "list": (pa.array([["a"], None, [], ["b", None]]), [["a"], None, [], ["b", None]]),
    "large list": (pa.array([[1], None, [2, 3]], pa.large_list(pa.int8())), [[1], None, [2, 3]]),
    "list view": (pa.array([["a"], None, ["b", "c"]], pa.list_view(pa.string())), [["a"], None, ["b", "c"]]),
    "large list view": (
        pa.array([[], None, [{"x": 1}]], pa.large_list_view(pa.struct({"x": pa.int8()}))),
        [[], None, [{"x": 1}]],
    ),
    "list of a size": (pa.array([[1, 2], None, [3, 4], None], pa.list_(pa.int8(), 2)), [[1, 2], None, [3, 4], None]),
    "list of size 0": (pa.array([[], None, []], pa.list_(pa.int8(), 0)), [[], None, []]),
    "struct": (pa.array([{"a": 1, "b": None}, None, {"b": "x"}]), [{"a": 1}, None, {"b": "x"}]),
    "struct of nulls": (pa.array([{"a": None}, {"a": None}]), [{}, {}]),
    "map": (
        pa.array([[("a", 1), ("b", None)], None, [], [("c", 3)]], pa.map_(pa.string(), pa.int8())),
        [{"a": 1, "b": None}, None, {}, {"c": 3}],
    ),
    "map of structs": (
        pa.array(
            [[("a", {"x": 1, "y": None})], [("a", None)]],
            pa.map_(pa.string(), pa.struct({"x": pa.int8(), "y": pa.int8()})),
        ),
        [{"a": {"x": 1}}, {"a": None}],
    ),
    "dictionary": (pa.array(["a", None, "b", "a"]).dictionary_encode(), ["a", None, "b", "a"]),
    "run ends": (pa.RunEndEncodedArray.from_arrays([2, 5], pa.array(["a", None])), ["a", "a", None, None, None]),
    "sparse union": (
        pa.UnionArray.from_sparse(
            pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1, 2, 3, 4]), pa.array(["a", "b", "c", None])]
        ),
        [1, "b", 3, None],
    ),
    "dense union": (
        pa.UnionArray.from_dense(
            pa.array([0, 1, 1, 0], pa.int8()),
            pa.array([0, 0, 1, 1], pa.int32()),
            [pa.array([{"x": 1, "y": None}, {"x": None, "y": 2}]), pa.array(["a", "b"])],
        ),
        [{"x": 1}, "a", "b", {"y": 2}],
    ),
    "json": (pa.array(JSON, pa.json_()), PARSED),
    "json, large": (extension(pa.json_(pa.large_string()), pa.array(JSON, pa.large_string())), PARSED),
    "list of json": (
        pa.ListArray.from_arrays(pa.array([0, None, 2], pa.int32()), pa.array(['{"a": null}', None], pa.json_())),
        [[{"a": None}, None], None],
    ),
    "uuid": (extension(pa.uuid(), pa.array([ID.bytes, None], pa.binary(16))), [str(ID), None]),
    "bool8": (extension(pa.bool8(), pa.array([1, 0, None], pa.int8())), [True, False, None]),
    "tensor": (
        extension(pa.fixed_shape_tensor(pa.int32(), [2, 2]), pa.array([[1, 2, 3, 4], None], pa.list_(pa.int32(), 4))),
        [[[1, 2], [3, 4]], None],
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_the_value_that_it_means(tmp_path: Path, name: str) -> None:
    array, expected = TYPES[name]
    assert column(tmp_path, array) == expected
    nested = pa.StructArray.from_arrays([array, pa.array(range(len(array)))], names=["in", "n"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, len(array)], pa.int32()), nested)
    values = column(tmp_path, lists)
    inner = [item.get("in") for item in (*values[0], *values[1])]
    assert inner == expected
    assert [item["n"] for item in (*values[0], *values[1])] == list(range(len(array)))


NOT_PARQUET = (
    "list of a size",
    "tensor",
    "list view",
    "large list view",
    "run ends",
    "sparse union",
    "dense union",
    "list of size 0",
)
"""Parquet has no such type, or pyarrow cannot read back what it wrote: a list of a fixed size that is null."""


@pytest.mark.parametrize("name", [name for name in TYPES if name not in NOT_PARQUET])
def test_parquet_gives_the_same(tmp_path: Path, name: str) -> None:
    array, expected = TYPES[name]
    assert [row["x"] for row in values(as_parquet(tmp_path, pa.table({"x": array})))] == expected


def test_json_that_is_null_is_kept_and_a_null_of_arrows_is_left_out(tmp_path: Path) -> None:
    array = pa.StructArray.from_arrays(
        [
            pa.array(["null", None], pa.json_()),
            pa.array([None, '{"d": null}'], pa.json_()),
            pa.array([1, None], pa.int8()),
        ],
        names=["a", "b", "c"],
    )
    assert column(tmp_path, array) == [{"a": None, "c": 1}, {"b": {"d": None}}]


def test_the_json_type_of_parquet_itself_is_read_without_arrows_schema(tmp_path: Path) -> None:
    """As DuckDB, Polars and Spark write it."""
    parquet.write_table(pa.table({"x": pa.array(JSON, pa.json_())}), tmp_path / "rows.parquet", store_schema=False)
    assert [row["x"] for row in values(tmp_path / "rows.parquet")] == PARSED


@pytest.mark.parametrize("name", ["arrow.json", "google:sqlType:json"])
def test_json_is_refused_in_the_fields_own_words_too(tmp_path: Path, name: str) -> None:
    field = pa.field("x", pa.string(), metadata={EXTENSION: name})
    assert column(tmp_path, pa.array(JSON), field) == PARSED


OPAQUE: dict[str, tuple[Any, pa.Field | None, str]] = {
    "an unknown extension": (
        pa.array(["a", None]),
        pa.field("x", pa.string(), metadata={EXTENSION: b"geoarrow.wkt"}),
        "a value of the unknown extension type geoarrow.wkt",
    ),
    "an opaque one": (
        extension(pa.opaque(pa.string(), "geometry", "PostGIS"), pa.array(["a", None])),
        None,
        "a value of the unknown extension type arrow.opaque",
    ),
    "a map of numbers": (
        pa.array([[(1, "a")], None], pa.map_(pa.int8(), pa.string())),
        None,
        "a map whose keys are int8, not text",
    ),
    "a map with a key twice": (
        pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int8())),
        None,
        "a map that has a key twice",
    ),
    "an interval": (pa.array([(1, 2, 3), None], pa.month_day_nano_interval()), None, "an interval"),
    "a time zone that nobody knows": (
        pa.array([1, None], pa.timestamp("s", "Mars/Crater")),
        None,
        "a time in the unknown time zone 'Mars/Crater'",
    ),
    "JSON that is none": (
        extension(pa.json_(), pa.array(['{"a": ', None])),
        None,
        "JSON that cannot be read (malformed JSON: Expecting value (column 7)",
    ),
}


@pytest.mark.parametrize("case", OPAQUE)
def test_what_has_no_value_is_named_and_the_rest_of_the_row_is_read(tmp_path: Path, case: str) -> None:
    array, field, what = OPAQUE[case]
    values, none = column(tmp_path, array, field)
    assert isinstance(values, Opaque)
    assert values.what.startswith(what)
    assert none is None
    assert what in str(values)
    assert str(values) != str(Opaque(what, "another"))


@settings(max_examples=150)
@given(data=st.data())
def test_any_nesting_is_read_as_pyarrow_reads_it_without_the_nulls_of_structs(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kinds = st.recursive(
        st.sampled_from(["text", "number"]),
        lambda inner: (
            st.tuples(st.sampled_from(["list", "large", "view"]), inner)
            | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
        ),
        max_leaves=4,
    )
    kind = data.draw(kinds)
    array = pa.array(data.draw(st.lists(drawn(kind), max_size=7)), arrow_type(kind))
    assert column(tmp_path_factory.getbasetemp(), array) == [without(value) for value in array.to_pylist()]


def arrow_type(kind: Any) -> Any:
    if isinstance(kind, dict):
        return pa.struct({name: arrow_type(inner) for name, inner in kind.items()})
    if isinstance(kind, tuple):
        return {"list": pa.list_, "large": pa.large_list, "view": pa.list_view}[kind[0]](arrow_type(kind[1]))
    return {"text": pa.string(), "number": pa.int64()}[kind]


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, dict):
        return st.none() | st.fixed_dictionaries({name: drawn(inner) for name, inner in kind.items()})
    if isinstance(kind, tuple):
        return st.none() | st.lists(drawn(kind[1]), max_size=3)
    return st.none() | {"text": st.text(max_size=3), "number": st.integers(0, 9)}[kind]


def without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without(inner) for key, inner in value.items() if inner is not None}
    return [without(inner) for inner in value] if isinstance(value, list) else value


# --- what `datasets` says of its columns

PICTURE = {"bytes": b"\x89PNG", "path": None}


def made() -> datasets.Dataset:
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "turns": datasets.List(
                {"who": datasets.ClassLabel(names=["user", "assistant"]), "note": datasets.Value("string")}
            ),
            "image": datasets.Image(decode=False),
            "grid": datasets.Array2D((2, 2), "int8"),
            "any": datasets.Json(),
            "in": {"any": datasets.List(datasets.Json())},
        }
    )
    rows = {
        "label": [1, 0],
        "turns": [[{"who": 0, "note": None}, {"who": 1, "note": "x"}], []],
        "image": [PICTURE, None],
        "grid": [[[1, 2], [3, 4]], [[0, 0], [0, 0]]],
        "any": [{"a": None}, [1, {"b": None}]],
        "in": [{"any": [{"c": None}, 7]}, {"any": None}],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_features_are_read_alike_from_saved_sets_parquet_and_the_hub(tmp_path: Path) -> None:
    saved, file, folder = tmp_path / "saved", tmp_path / "rows.parquet", tmp_path / "hub"
    made().save_to_disk(saved)
    made().to_parquet(file)
    folder.mkdir()
    made().to_parquet(folder / "train.parquet")
    read = [
        list(sources.open_source(str(saved), DataSection()).rows()),
        list(read_file(file)),
        list(hub.rows(str(folder), DataSection())),
        list(hub.rows(str(folder), DataSection(max_rows=2))),
    ]
    for rows in read:
        first, second = (dict(row.values) for row in rows if isinstance(row, Row))
        picture = first.pop("image")
        assert isinstance(picture, Opaque)
        assert (picture.what, picture.value["bytes"]) == ("an image", PICTURE["bytes"])
        assert first == {
            "label": 1,
            "turns": [{"who": "user"}, {"who": "assistant", "note": "x"}],
            "grid": [[1, 2], [3, 4]],
            "any": {"a": None},
            "in": {"any": [{"c": None}, 7]},
        }
        assert second["any"] == [1, {"b": None}]
        assert isinstance(rows[0], Row)
        assert isinstance(rows[0].values, TableRow)
        assert rows[0].values.table.classes == {"label": ["neg", "pos"]}


def test_a_row_still_knows_the_nulls_that_its_table_has(tmp_path: Path) -> None:
    stored = [
        {"a": {"x": 1, "y": None}, "b": [{"z": None}, None], "j": {"k": None}},
        {"a": {"x": None, "y": 2}, "b": None},
    ]
    table = pa.table(
        {
            "a": pa.array([row["a"] for row in stored]),
            "b": pa.array([row["b"] for row in stored], pa.list_(pa.struct({"z": pa.int8()}))),
            "j": pa.array([json.dumps({"k": None}), None], pa.json_()),
        }
    )
    rows = [row.values for row in read_file(as_parquet(tmp_path, table)) if isinstance(row, Row)]
    assert dict(rows[0]) == {"a": {"x": 1}, "b": [{}, None], "j": {"k": None}}
    assert all(isinstance(row, TableRow) for row in rows)
    assert [{name: row.as_stored(name) for name in "abj"} for row in rows if isinstance(row, TableRow)] == [
        stored[0],
        {**stored[1], "j": None},
    ]


@pytest.mark.parametrize(
    "written", [b"no JSON", b"[]", b'{"info": 1}', b'{"info": {"features": {"x": {"_type": ["?"]}}}}']
)
def test_words_about_the_features_that_cannot_be_read_are_passed_over(tmp_path: Path, written: bytes) -> None:
    table = pa.table({"x": ["a"]}).replace_schema_metadata({b"huggingface": written})
    assert values(as_parquet(tmp_path, table)) == [{"x": "a"}]
