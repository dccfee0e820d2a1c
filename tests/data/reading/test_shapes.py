"""Rows that lie under a key, in lists, one in another: found, read one by one, and told."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import lineage, sources
from mlflow_ft.data.reading import json_list, parsing
from mlflow_ft.data.recognising.recognition import Recogniser, Understood
from mlflow_ft.errors import DataError
from mlflow_ft.hashes import row_hash
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row

LOADED = plugins.load({})
REGISTRY = Registry(LOADED)
TOOL = {"name": "f", "parameters": {"type": "object"}}


def talk(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


A, B = talk("a", "x"), talk("b", "y")
MESSAGES = [{"messages": A}, {"messages": B}]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, *values: Any, indent: int | None = None) -> Path:
        file = tmp_path / name
        file.write_text("\n".join(json.dumps(value, indent=indent) for value in values))
        return file

    return make


def understood(file: Path, **settings: Any) -> Understood:
    section = DataSection(path=str(file), **settings)
    source = sources.open_source(str(file), section)
    return Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).understand(source)


def rows(source: Understood) -> list[Any]:
    return [dict(row.values) if isinstance(row, Row) else row.reason for row in source.source.rows()]


WRAPPED: dict[str, tuple[Any, list[Any], str]] = {
    "a key": ({"data": MESSAGES}, MESSAGES, "the rows are under `data`"),
    "a key beside others": (
        {"version": "1", "conversations": MESSAGES, "n": 2},
        MESSAGES,
        "the rows are under `conversations` (left out: version, n)",
    ),
    "keys in keys": ({"a": {"b": {"c": MESSAGES}}}, MESSAGES, "the rows are under `a.b.c`"),
    "a key of each": (
        {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(MESSAGES)]},
        MESSAGES,
        "the rows are under `rows`, each under `row` (left out: features, row_idx)",
    ),
    "the split that was asked for": (
        {"train": MESSAGES, "test": [{"messages": A}]},
        MESSAGES,
        "the rows are under `train` (left out: test)",
    ),
    "what stands beside and belongs to each": (
        {"system": "Be kind", "tools": [TOOL], "chats": MESSAGES},
        [{"system": "Be kind", "tools": [TOOL], **row} for row in MESSAGES],
        "the rows are under `chats` (each with: system, tools)",
    ),
    "lists of turns": ([A, B], MESSAGES, "each list of turns is read as one conversation"),
    "lists of turns under a key": (
        {"chats": [A, B]},
        MESSAGES,
        "each list of turns under `chats` is read as one conversation",
    ),
    "lists of ShareGPT's turns": (
        [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]],
        [{"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]}],
        "each list of turns is read as one conversation",
    ),
    "conversations in a conversation": (
        {"conversations": [A, B], "system": "s"},
        [{"system": "s", "conversations": conversation} for conversation in (A, B)],
        "`conversations` holds several conversations; each is read as a separate row (each with: system)",
    ),
    "JSON in text": ({"payload": json.dumps({"messages": A})}, [{"messages": A}], "the rows are under `payload`"),
    "texts": ({"data": [{"text": "a"}, {"text": "b"}]}, [{"text": "a"}, {"text": "b"}], "the rows are under `data`"),
    "preferences": (
        {"items": [{"prompt": "a", "chosen": "x", "rejected": "y"}]},
        [{"prompt": "a", "chosen": "x", "rejected": "y"}],
        "the rows are under `items`",
    ),
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("case", WRAPPED)
def test_rows_are_found_where_they_lie(write: Callable[..., Path], case: str, indent: int | None) -> None:
    value, expected, told = WRAPPED[case]
    file = write("rows.json", value, indent=indent)
    source = understood(file)
    assert rows(source) == expected
    assert source.remarks == (told,)


@pytest.mark.parametrize("case", ["a key", "conversations in a conversation", "lists of turns", "JSON in text"])
def test_rows_are_found_in_every_line(write: Callable[..., Path], case: str) -> None:
    value, expected, told = WRAPPED[case]
    values = value if isinstance(value, list) else [value, value]
    source = understood(write("rows.jsonl", *values))
    assert rows(source) == (expected if isinstance(value, list) else expected * 2)
    assert source.remarks[0].endswith(told)


def test_a_row_has_the_line_on_which_it_begins(write: Callable[..., Path]) -> None:
    source = understood(write("rows.json", {"data": MESSAGES}, indent=1))
    first, second = source.source.rows()
    lines = json.dumps({"data": MESSAGES}, indent=1).splitlines()
    assert [lines[row.line - 1].strip() for row in (first, second)] == ["{", "{"]
    assert first.line == 3
    assert second.line > 10


def test_an_element_that_is_not_a_row_is_reported_and_the_others_are_read(write: Callable[..., Path]) -> None:
    source = understood(write("rows.json", {"data": [MESSAGES[0], 7, MESSAGES[1]]}))
    assert rows(source) == [MESSAGES[0], "a row must be an object, but this is a number", MESSAGES[1]]
    source = understood(write("rows.jsonl", {"row": MESSAGES[0]}, {"other": 1}, {"row": MESSAGES[1]}))
    assert rows(source) == [MESSAGES[0], {"other": 1}, MESSAGES[1]], "a row without the key is left to its format"


def test_the_named_split_is_read(write: Callable[..., Path]) -> None:
    value = {"train": [{"messages": A}], "validation": [{"messages": B}]}
    assert rows(understood(write("rows.json", value), split="validation")) == [{"messages": B}]
    assert rows(understood(write("rows.json", value), split="dev")) == [{"messages": B}]


def test_columns_may_be_renamed_in_the_rows_that_were_found(write: Callable[..., Path]) -> None:
    file = write("rows.json", {"data": [{"frage": "a", "antwort": "x"}]})
    source = understood(file, columns={"prompt": "frage", "completion": "antwort"})
    assert (source.record.name, rows(source)) == ("prompt-completion", [{"frage": "a", "antwort": "x"}])


def test_a_format_that_is_named_is_looked_for_too(write: Callable[..., Path]) -> None:
    assert rows(understood(write("rows.json", {"data": MESSAGES}), format="messages")) == MESSAGES
    stays = understood(write("rows.json", {"data": 1}), format="messages")
    assert (stays.source.shape, rows(stays)) == (None, [{"data": 1}])


def test_at_most_so_many_of_the_rows_are_read(write: Callable[..., Path]) -> None:
    assert len(rows(understood(write("rows.json", {"data": MESSAGES * 5}), max_rows=3))) == 3


NOT_TAKEN: dict[str, list[Any]] = {
    "two places": [{"en": MESSAGES, "de": MESSAGES}],
    "two answers": [{"better": MESSAGES[0], "worse": MESSAGES[1]}],
    "versions with their scores": [{"candidates": [A, B], "scores": [1, 0]}],
    "versions in several rows": [{"candidates": [A, B]}, {"candidates": [A, B]}],
    "rounds or rows": [[[{"input": "a", "output": "x"}, {"input": "b", "output": "y"}]]],
    "a text that stands deep": [{"data": [{"title": "t", "answers": [{"text": "a", "start": 1}]}]}],
    "a text in every row": [{"id": 1, "meta": {"text": "a"}}, {"id": 2, "meta": {"text": "b"}}],
    "nothing": [{"a": [], "b": {}, "c": [[]], "d": None}],
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_where_it_is_not_plain_nothing_is_taken(write: Callable[..., Path], case: str) -> None:
    for name in ("rows.jsonl", "rows.json"):
        with pytest.raises(DataError):
            understood(write(name, *NOT_TAKEN[case]))


def test_rows_that_are_read_as_they_are_are_not_searched_for_other_rows(write: Callable[..., Path]) -> None:
    source = understood(write("rows.json", {"prompt": "a", "completion": "x", "data": MESSAGES}))
    assert (source.record.name, source.source.shape) == ("prompt-completion", None)


def test_the_hash_of_a_row_is_that_of_the_row_that_was_found(write: Callable[..., Path]) -> None:
    source = sources.open_source(str(write("rows.json", {"data": MESSAGES})), DataSection())
    assert lineage.hashes_of(source, plugins=LOADED, registry=REGISTRY) == {row_hash(row) for row in MESSAGES}
    other = sources.open_source(str(write("rows.jsonl", {"x": 1})), DataSection())
    assert lineage.hashes_of(other, plugins=LOADED, registry=REGISTRY) == {row_hash({"x": 1})}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_object_may_be_larger_than_a_row_may_be(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    monkeypatch.setattr(parsing, "MAX_ROW_BYTES", 2000)
    monkeypatch.setattr(json_list, "PIECE", 64)
    source = understood(write("rows.json", {"n": 1, "other": [1] * 2000, "data": MESSAGES * 100}, indent=indent))
    assert rows(source) == MESSAGES * 100


def test_memory_does_not_grow_with_the_rows_in_an_object(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "PIECE", 2**14)
    peaks = []
    for count in (500, 4_000, 16_000):  # the first warms up what is made once
        source = understood(write("rows.json", {"data": MESSAGES * (count // 2)}))
        tracemalloc.start()
        assert sum(1 for _ in source.source.rows()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.6 * peaks[1]


@pytest.mark.parametrize("value", [{"data": MESSAGES}, {"a": {"b": [MESSAGES[0], 7, [1, 2], "x"]}, "c": [3]}])
@pytest.mark.parametrize("piece", [1, 3, 2**20])
def test_what_lies_in_an_object_is_read_as_python_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: dict[str, Any], piece: int
) -> None:
    monkeypatch.setattr(json_list, "PIECE", piece)
    file = tmp_path / "rows.json"
    for indent in (None, 2):
        text = json.dumps(value, indent=indent)
        file.write_text(text)
        assert json_list.outline(file, most=1000) == value
        path = ["data"] if "data" in value else ["a", "b"]
        inner = value["data"] if "data" in value else value["a"]["b"]
        assert [value for _, value in json_list.read_inside(file, path)] == inner
        assert list(json_list.read_inside(file, ["nowhere"])) == []
        for end in range(1, len(text) - 1, 7):
            file.write_text(text[:end])
            with pytest.raises(json_list.BrokenFile, match="malformed JSON"):
                json_list.outline(file, most=1000)


def test_an_outline_is_of_one_object_and_keeps_little_of_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('{"a": [1, 2, 3], "b": {"c": [4, 5, 6]}}')
    assert json_list.outline(file, most=2) == {"a": [1, 2], "b": {"c": [4, 5]}}
    for text in ("[1]", '{"a": 1} {"a": 2}', ""):
        file.write_text(text)
        assert json_list.outline(file, most=2) is None
    file.write_text('{"a": 1, "a": 2}')
    with pytest.raises(json_list.BrokenFile, match="the key 'a' occurs twice"):
        json_list.outline(file, most=2)


def test_a_folder_may_hold_several_such_files(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps({"data": [MESSAGES[0]]}))
    (tmp_path / "2.jsonl").write_text(json.dumps({"data": [MESSAGES[1]]}))
    assert rows(understood(tmp_path)) == MESSAGES


def test_questions_and_answers_under_a_key_are_the_rows_of_a_file(write: Callable[..., Path]) -> None:
    """They could be the rounds of one conversation, but a file of one conversation would be no training data."""
    asked = [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(3)]
    found = understood(write("faq.json", {"version": 1, "data": asked}, indent=1))
    assert (found.record.name, rows(found)) == ("question-answer", asked)
    with pytest.raises(DataError, match="no known format"):
        understood(write("talks.jsonl", *({"rounds": asked} for _ in range(3))))
