"""Arrow columns as Python values, type by type: JSON is parsed, padding is left out, unreadable types are named.

struct               an object, without the fields that are null: Arrow gives every struct the fields of all others
map                  an object, with its nulls, which were written on purpose
list, large_list, list_view, fixed_size_list    a list
dictionary, run_end_encoded, union              its values
arrow.json           the JSON value, with its nulls; likewise a text that `datasets` calls Json
arrow.uuid           its text; arrow.bool8 true or false; a tensor its nested lists
date, time, timestamp, duration, decimal, binary    Python's own objects; a format that needs text refuses them
another extension, a map whose keys are not text, an image, audio    an `Opaque`, which every format refuses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.reading.parsing import RowError, parse
from mlflow_ft.rows import Opaque

if TYPE_CHECKING:
    import pyarrow

Values = list[Any]
EXTENSION = b"ARROW:extension:name"
"""Where a field names an extension type that pyarrow does not know."""
JSON_TYPES = ("arrow.json", "google:sqlType:json")
PLAIN_TYPES = ("arrow.bool8", "arrow.py_extension_type", "datasets.")
"""Beginnings of the names of extension types whose stored values can be used as they are."""
MEDIA = {"Image": "an image", "Audio": "audio", "Video": "a video", "Pdf": "a PDF"}


def column(array: pyarrow.Array, field: pyarrow.Field, feature: Any = None) -> Values:
    """The values of one column, from top to bottom; `feature` is what `datasets` says about it.

    Raises:
        ValueError, ArithmeticError: a value is outside Python's range.
    """
    import pyarrow as pa

    kind = array.type
    feature_type = feature.get("_type") if isinstance(feature, Mapping) else None
    if isinstance(feature_type, str) and feature_type in MEDIA:
        return _opaque(array, MEDIA[feature_type])
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(array.storage, kind, field, feature)
    name = (field.metadata or {}).get(EXTENSION, b"").decode("utf-8", "replace")
    if name or (feature_type == "Json" and _is_text(kind)):
        return _named(array, name or JSON_TYPES[0], field, feature)
    return _plain(array, field, feature)


def _plain(array: pyarrow.Array, field: pyarrow.Field, feature: Any) -> Values:
    import pyarrow.types as t

    kind = array.type
    if t.is_struct(kind):
        return _structs(array, feature)
    if t.is_map(kind):
        return _maps(array)
    if t.is_dictionary(kind):
        return column(array.dictionary.take(array.indices), field, feature)
    if t.is_union(kind):
        return _unions(array)
    if t.is_run_end_encoded(kind):
        return column(_decoded(array), field, feature)
    if t.is_nested(kind):
        return _lists(array, feature)
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" and t.is_integer(kind):
        return _classes(array.to_pylist(), feature.get("names"))
    return _leaves(array)


def _decoded(array: pyarrow.Array) -> pyarrow.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.run_end_decode(array)
    except pa.ArrowNotImplementedError as error:  # of objects and lists
        raise ValueError(f"{array.type} is not supported") from error


def _leaves(array: pyarrow.Array) -> Values:
    import pyarrow as pa

    if pa.types.is_interval(array.type):
        return _opaque(array, "an interval")
    try:
        return list(array.to_pylist())
    except (pa.ArrowInvalid, KeyError):  # pytz, which Arrow uses where it is installed, raises a KeyError
        if not pa.types.is_timestamp(array.type):
            raise
        return _opaque(array.cast("int64"), f"a time in the unknown time zone {array.type.tz!r}")


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


# --- extension types


def _extension(storage: pyarrow.Array, kind: Any, field: pyarrow.Field, feature: Any) -> Values:
    import pyarrow as pa

    if isinstance(kind, pa.UuidType):
        return [
            None if value is None else str(value) for value in pa.ExtensionArray.from_storage(kind, storage).to_pylist()
        ]
    if isinstance(kind, pa.FixedShapeTensorType):
        tensors = pa.ExtensionArray.from_storage(kind, storage)
        return [tensor.to_numpy().tolist() if tensor.is_valid else None for tensor in tensors]
    if isinstance(kind, pa.Bool8Type):
        return [None if value is None else value != 0 for value in storage.to_pylist()]
    return _named(storage, str(kind.extension_name), field, feature)


def _named(storage: pyarrow.Array, name: str, field: pyarrow.Field, feature: Any) -> Values:
    if name in JSON_TYPES and _is_text(storage.type):
        return [None if text is None else _parsed(text) for text in storage.to_pylist()]
    if name.startswith(PLAIN_TYPES):
        return _plain(storage, field, feature)
    return _opaque(storage, f"a value of the unknown extension type {name}")


def _parsed(text: str) -> Any:
    value = parse(text)
    return Opaque(f"JSON that cannot be read ({value})", text) if isinstance(value, RowError) else value


def _opaque(array: pyarrow.Array, what: str) -> Values:
    return [None if value is None else Opaque(what, value) for value in array.to_pylist()]


def _classes(numbers: Sequence[int | None], names: Any) -> Values:
    """The class names; a number without a name (-1 is "not labelled") stays."""
    known = names if isinstance(names, list) else []
    return [known[n] if n is not None and 0 <= n < len(known) else n for n in numbers]


# --- nested types


def _structs(array: pyarrow.Array, feature: Any) -> Values:
    kind = array.type
    fields = [kind.field(index) for index in range(kind.num_fields)]
    if len({field.name for field in fields}) < len(fields):
        raise ValueError("an object has a key twice: " + ", ".join(field.name for field in fields))
    inner = feature if isinstance(feature, Mapping) and "_type" not in feature else {}
    objects: Values = [{} for _ in range(len(array))]
    for index, field in enumerate(fields):
        child = array.field(index)
        values = column(child, field, inner.get(field.name))
        if child.null_count == 0 and not _may_hide_nulls(child.type):
            for row, value in zip(objects, values, strict=True):
                row[field.name] = value
            continue
        # JSON that says null is a value; a null of Arrow's own is padding
        for row, value, is_there in zip(objects, values, child.is_valid().to_pylist(), strict=True):
            if is_there and not (value is None and _may_hide_nulls(child.type)):
                row[field.name] = value
    if array.null_count:
        valid = array.is_valid().to_pylist()
        objects = [row if is_there else None for row, is_there in zip(objects, valid, strict=True)]
    return objects


def _may_hide_nulls(kind: pyarrow.DataType) -> bool:
    """Whether nulls among the values of this type are not nulls of its array."""
    import pyarrow.types as t

    return bool(t.is_union(kind) or t.is_run_end_encoded(kind) or t.is_dictionary(kind))


def _lists(array: pyarrow.Array, feature: Any) -> Values:
    inner = _of_elements(feature)
    field = array.type.value_field
    places = list(_ranges(array))
    begin = min((start for start, _ in places), default=0)
    end = max((stop for _, stop in places), default=0)
    values = column(array.values.slice(begin, end - begin), field, inner)
    lists: Values = [values[start - begin : stop - begin] for start, stop in places]
    if array.null_count:
        return [
            elements if is_there else None
            for elements, is_there in zip(lists, array.is_valid().to_pylist(), strict=True)
        ]
    return lists


def _of_elements(feature: Any) -> Any:
    if isinstance(feature, list):
        return feature[0] if feature else None
    if isinstance(feature, Mapping) and feature.get("_type") in ("List", "LargeList", "Sequence"):
        return feature.get("feature")
    return None


def _ranges(array: pyarrow.Array) -> Iterator[tuple[int, int]]:
    """Where each list of an array begins and ends in its values; an empty range for a list that is null."""
    import pyarrow.types as t

    count = len(array)
    if t.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = range(array.offset * size, (array.offset + count) * size, size) if size else [0] * count
        places = [(start, start + size) for start in starts]
    elif t.is_list_view(array.type) or t.is_large_list_view(array.type):
        places = [(at, at + size) for at, size in zip(array.offsets.to_pylist(), array.sizes.to_pylist(), strict=True)]
    else:
        ends = array.offsets.to_pylist()
        places = list(pairwise(ends))
    if not array.null_count:
        return iter(places)
    first = places[0] if places else (0, 0)
    valid = array.is_valid().to_pylist()
    return ((place if is_there else (first[0], first[0])) for place, is_there in zip(places, valid, strict=True))


def _maps(array: pyarrow.Array) -> Values:
    kind = array.type
    places = list(_ranges(array))
    begin, end = (places[0][0], max(stop for _, stop in places)) if places else (0, 0)
    keys = column(array.keys.slice(begin, end - begin), kind.key_field)
    items = column(array.items.slice(begin, end - begin), kind.item_field)
    objects: Values = []
    for (start, stop), is_there in zip(places, array.is_valid().to_pylist(), strict=True):
        names, values = keys[start - begin : stop - begin], items[start - begin : stop - begin]
        objects.append(_object(names, values, kind) if is_there else None)
    return objects


def _object(names: Values, values: Values, kind: Any) -> Any:
    pairs = list(zip(names, values, strict=True))
    if not all(isinstance(name, str) for name in names):
        return Opaque(f"a map whose keys are {kind.key_type}, not text", pairs)
    mapping = dict(pairs)
    return mapping if len(mapping) == len(pairs) else Opaque("a map that has a key twice", pairs)


def _unions(array: pyarrow.Array) -> Values:
    kind = array.type
    # pyarrow's own `type_codes` and `offsets` ignore where a slice begins
    _, codes_buffer, *others = array.buffers()
    span = slice(array.offset, array.offset + len(array))
    codes = memoryview(codes_buffer).cast("b")[span].tolist()
    offsets = memoryview(others[0]).cast("i")[span].tolist() if kind.mode == "dense" else range(len(array))
    places: dict[int, list[int]] = {}
    for code, at in zip(codes, offsets, strict=True):
        places.setdefault(code, []).append(at)
    child_of = {code: index for index, code in enumerate(kind.type_codes)}
    taken = {code: iter(_taken(array, child_of[code], at)) for code, at in places.items()}
    return [next(taken[code]) for code in codes]


def _taken(array: pyarrow.Array, child: int, places: Sequence[int]) -> Values:
    import pyarrow as pa

    return column(array.field(child).take(pa.array(places, pa.int64())), array.type.field(child))
