from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft.data.reading import json_list, parsing
from mlflow_ft.data.reading.compressed import BrokenFile
from mlflow_ft.data.reading.parsing import RowError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.json"


@pytest.fixture(scope="module")
def any_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "any.json"


@pytest.fixture(params=[1, 2, 3, 7, 2**20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is read at a time: the file is cut at every place."""
    size: int = request.param
    monkeypatch.setattr(json_list, "PIECE", size)
    return size


def read(file: Path, content: str | bytes, *, brackets: bool = True) -> list[tuple[int, Any]]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(json_list.read(file, brackets=brackets))


def until_broken(elements: Iterator[tuple[int, Any]]) -> tuple[list[Any], BrokenFile | None]:
    values = []
    try:
        for _, value in elements:
            values.append(value)
    except BrokenFile as error:
        return values, error
    return values, None


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        (" \n[\n ]\n\n", []),
        ("[{}]", [(1, {})]),
        ('[{"a": 1},\n{"a": 2}]', [(1, {"a": 1}), (2, {"a": 2})]),
        ('[\n\n{"a": 1}\n,\n\t{"a":\n2}\r\n]', [(3, {"a": 1}), (5, {"a": 2})]),
        ('[{"a": "]},["}, {"b": "\\"]"}]', [(1, {"a": "]},["}), (1, {"b": '"]'})]),
        ('[{"a": "é\u2028🙂"}]', [(1, {"a": "é\u2028🙂"})]),
        ("[1.5e-10, -2, 10, true, null, -0.5, [1.25], 1e5]", [1.5e-10, -2, 10, True, None, -0.5, [1.25], 1e5]),
        ('["a", "b\\n"]', ["a", "b\n"]),
    ],
)
def test_elements_come_with_the_line_on_which_they_begin(file: Path, content: str, expected: list[Any]) -> None:
    elements = read(file, content)
    assert elements == [element if isinstance(element, tuple) else (1, element) for element in expected]


@pytest.mark.usefixtures("piece")
def test_objects_may_follow_one_another(file: Path) -> None:
    content = '\n{\n "a": 1\n}\n{"a": 2}{"a": 3}\n\n{"a":\n4}'
    expected = [(2, {"a": 1}), (5, {"a": 2}), (5, {"a": 3}), (7, {"a": 4})]
    assert read(file, content, brackets=False) == expected


@pytest.mark.usefixtures("piece")
def test_a_byte_order_mark_is_not_text(file: Path) -> None:
    assert read(file, b'\xef\xbb\xbf[{"a": 1}]') == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, r"Expecting '\[', and the file ends"),
        ("\n\n7", 3, r"Expecting '\['"),
        ("[", 1, "Expecting value"),
        ('[\n{"a": 1},\n', 3, "Expecting value"),
        ('[\n{"a": 1}\n', 3, "Expecting ',', and the file ends"),
        ('[{"a": 1}\n{"a": 2}]', 2, "Expecting ','"),
        ('[{"a": 1},\n]', 2, "Expecting value"),
        ('[,\n{"a": 1}]', 1, "Expecting value"),
        ('[\n{"a": 1},\n{"a"\n 2}\n]', 4, "Expecting ':' delimiter"),
        ('[{"a": 1,}]', 1, "Expecting property name|Illegal trailing comma"),
        ('[\n{"a": "x\ny"}]', 2, "Invalid control character"),
        ('[\n{"a": "x', 2, "Unterminated string"),
        ('[{"a": "\\x"}]', 1, r"Invalid \\escape"),
        ("[{'a': 1}]", 1, "Expecting property name"),
        ('[{"a": 1}]\n\nmore', 3, "Extra data after the list"),
        ('[{"a": 1}]\n[{"a": 2}]', 2, "Extra data after the list"),
        (b'[{"a": 1}]\n\xc3', 2, "Extra data after the list"),
        ("[1.]", 1, "Expecting ','"),
        ("[01]", 1, "Expecting ','"),
        ("[nul]", 1, "Expecting value"),
        (b"[\x00{\x00}\x00]\x00", 1, "Expecting value"),
        (b'[{"a": 1},\n\xff\n{"a": 2}]', 2, "Expecting value"),
    ],
)
@pytest.mark.usefixtures("piece")
def test_what_is_malformed_is_reported_with_its_line(file: Path, content: str | bytes, line: int, reason: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    _, error = until_broken(json_list.read(file))
    assert error is not None
    assert error.line == line
    with pytest.raises(BrokenFile, match=f"malformed JSON: {reason}"):
        raise error


WHOLE = '[{"a": [1, -2.5e-3, null], "b": "\\u00e9\\n\\ud83d\\ude42"},\n {"c": {"d": true, "e": {}}},\n\n{"f": "é"}]'


@pytest.mark.usefixtures("piece")
def test_a_list_that_is_cut_anywhere_gives_what_is_whole_and_is_reported(file: Path) -> None:
    data, whole = WHOLE.encode(), json.loads(WHOLE)
    for end in range(len(data)):
        file.write_bytes(data[:end])
        values, error = until_broken(json_list.read(file))
        assert error is not None
        assert values == whole[: len(values)]
        assert len(values) >= data[:end].count(b"},") - data[:end].count(b"true, ")


def is_refused(element: Any) -> bool:
    """Whether an element is well formed, but has a key twice or half of a character; `marked` has read it."""
    text = json.dumps(element, ensure_ascii=False)
    return "twice" in text or text.encode("utf-8", "replace") != text.encode("utf-8", "surrogatepass")


def marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members | {"twice": True} if len(members) < len(pairs) else members


@pytest.mark.parametrize("piece", [1, 2**20], indirect=True)
@pytest.mark.usefixtures("piece")
def test_any_change_of_a_list_is_read_as_json_has_it_or_reported(file: Path) -> None:
    for place in range(len(WHOLE)):
        for letter in ("", *'{}[]",:\\0x-ade8é \n'):
            content = WHOLE[:place] + letter + WHOLE[place + 1 :]
            file.write_bytes(content.encode())
            values, error = until_broken(json_list.read(file))
            try:
                expected = json.loads(content, object_pairs_hook=marked)
            except json.JSONDecodeError:
                assert error is not None, content
            else:
                assert error is None, content
                assert [isinstance(value, RowError) or value for value in values] == [
                    is_refused(element) or element for element in expected
                ]


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"x": 0, "a": 1, "a": 2, "y": 0}', "the key 'a' occurs twice"),
        ('{"x": [{"b": 1, "c": {}, "b": 2}], "y": "}"}', "the key 'b' occurs twice"),
        ('{"\\u0061": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"\\ud800": 1, "\\ud800": 2}', r"the key '\\ud800' occurs twice"),
        ('{"a": "\\ud800"}', r"unpaired surrogate \(\\ud800\)"),
        ('{"a": [{"b": "x\\uDFFFy"}]}', r"unpaired surrogate \(\\udfff\)"),
        ('{"\\udead": 1}', r"unpaired surrogate \(\\udead\)"),
        ('{"a": "\\ud83d \\ude42"}', r"unpaired surrogate \(\\ud83d\)"),
        ('{"a": ' + "1" * 5000 + "}", "a number with too many digits"),
        ("1" * 5000, "a number with too many digits"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested more than 100 levels deep"),
        (b'{"a": "caf\xe9"}', "not UTF-8 text"),
        (b'{"caf\xe9": 1}', "not UTF-8 text"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text"),
        (b'{"a": "\xf0\x9f\x99"}', "not UTF-8 text"),
    ],
)
def test_an_element_that_is_refused_does_not_hide_the_others(file: Path, element: str | bytes, reason: str) -> None:
    raw = element if isinstance(element, bytes) else element.encode()
    first, refused, last = read(file, b'[{"first": "\xc3\xa9"},\n' + raw + b',\n{"last": 1}]')
    assert first == (1, {"first": "é"})
    assert last == (3, {"last": 1})
    assert refused[0] == 2
    assert isinstance(refused[1], RowError)
    with pytest.raises(RowError, match=reason):
        raise refused[1]


def test_every_depth_is_taken_refused_or_reported(file: Path) -> None:
    """Up to the depth at which Python's own parser gives up, and beyond it."""
    seen = []
    for depth in [2, 50, 99, 100, 101, *range(150, 1100, 50), *range(960, 1000), 5000, 10**6]:
        file.write_text("[" + "[" * (depth - 1) + "[],[]" + "]" * (depth - 1) + ',{"a": 1}]')
        values, error = until_broken(json_list.read(file))
        if error:
            assert "nested too deeply" in error.reason
            seen.append("told")
        else:
            assert values[1] == {"a": 1}
            assert isinstance(values[0], RowError) is (depth > 100)
            seen.append("refused" if isinstance(values[0], RowError) else "taken")
    assert sorted(seen, key=["taken", "refused", "told"].index) == seen
    assert set(seen) == {"taken", "refused", "told"}


@pytest.mark.usefixtures("piece")
def test_escaped_pairs_of_surrogates_are_characters(file: Path) -> None:
    assert read(file, '[{"a": "\\ud83d\\ude42", "b": "\\\\ud800"}]') == [(1, {"a": "🙂", "b": "\\ud800"})]


@pytest.mark.usefixtures("piece")
def test_numbers_that_json_has_no_name_for_are_read_as_python_writes_them(file: Path) -> None:
    (_, value), last = read(file, '[{"a": NaN, "b": [Infinity, -Infinity], "c": 1e999}, -Infinity]')
    assert math.isnan(value["a"])
    assert (value["b"], value["c"]) == ([math.inf, -math.inf], math.inf)
    assert last == (1, -math.inf)


def test_a_row_that_is_too_long_is_reported_and_the_others_are_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "PIECE", 8)
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 100)
    fits, over = json.dumps({"a": "x" * 91}), json.dumps({"a": "x" * 92})
    assert (len(fits), len(over)) == (100, 101)
    first, long, last = read(file, f'[{fits},\n{over},\n{{"a": 1}}]')
    assert first == (1, json.loads(fits))
    assert last == (3, {"a": 1})
    assert str(long[1]) == "longer than 100 bytes, too long for a row"


def test_a_value_without_an_end_is_reported_before_the_whole_file_is_in_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "PIECE", 8)
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 100)
    with pytest.raises(BrokenFile, match="a value does not end within 100 bytes") as error:
        read(file, '[{"a": 1},\n{"a": "open}, {' + "x" * 1000)
    assert error.value.line == 2


def test_malformed_json_is_reported_with_its_place_however_long_the_file_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "PIECE", 8)
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 100)
    with pytest.raises(BrokenFile, match="Expecting ':' delimiter") as error:
        read(file, '[{"a": 1},\n{"a" 2},\n' + '{"a": 1},\n' * 1000)
    assert error.value.line == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    values=st.lists(VALUES, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 20),
    ascii_only=st.booleans(),
)
def test_any_list_is_read_as_python_reads_it(
    any_file: Path, values: list[Any], indent: int | None, size: int, *, ascii_only: bool
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "PIECE", size)
        elements = read(any_file, content)
    assert [value for _, value in elements] == values
    if indent is not None:
        # each element of a pretty list has lines of its own
        sizes = [json.dumps(value, indent=indent).count("\n") + 1 for value in values]
        assert [line for line, _ in elements] == [2 + sum(sizes[:place]) for place in range(len(values))]
