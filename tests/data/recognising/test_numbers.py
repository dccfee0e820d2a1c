"""Numbers, true and false where a format wants text are taken as JSON writes them, where all rows agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlflow_ft import plugins
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import sources
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.recognising import convert
from mlflow_ft.data.recognising.recognition import Recogniser, Understood
from mlflow_ft.registry import Registry

LOADED = plugins.load({})
REGISTRY = Registry(LOADED)


def understood(file: Path, **settings: Any) -> Understood:
    section = DataSection(path=str(file), **settings)
    source = sources.open_source(str(file), section)
    return Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).understand(source)


def of(folder: Path, *rows: Mapping[str, Any], **settings: Any) -> Understood:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return understood(file, **settings)


def said(source: Understood) -> list[Any]:
    """The last words of each row, or why it is none."""
    settings = source.source.settings
    made = convert.convert(source.source.rows(), source.record, settings, as_text=source.as_text)
    return [result.reason if isinstance(result, Unreadable) else result[1].answer for result in made]


ROWS: dict[str, tuple[list[dict[str, Any]], str, list[str], list[str]]] = {
    "whole numbers": (
        [{"question": "2+2?", "answer": 4}, {"question": "3+3?", "answer": 6}],
        "question-answer",
        ["4", "6"],
        ['`answer` is a number; it is used as text (4 becomes the text "4")'],
    ),
    "fractions": (
        [{"instruction": "half", "input": "7", "output": 3.5}, {"instruction": "half", "input": "6", "output": 3}],
        "alpaca",
        ["3.5", "3"],
        ['`output` is a number; it is used as text (3.5 becomes the text "3.5")'],
    ),
    "truths": (
        [{"prompt": "is it?", "completion": True}, {"prompt": "and now?", "completion": False}],
        "prompt-completion",
        ["true", "false"],
        ['`completion` is true or false; it is used as text (true becomes the text "true")'],
    ),
    "what is asked, too": (
        [{"instruction": "double", "input": 2, "output": "4"}],
        "alpaca",
        ["4"],
        ['`input` is a number; it is used as text (2 becomes the text "2")'],
    ),
    "preferences": (
        [{"prompt": "2+2?", "chosen": 4, "rejected": 5}],
        "preference",
        ["4"],
        [
            '`chosen` is a number; it is used as text (4 becomes the text "4")',
            '`rejected` is a number; it is used as text (5 becomes the text "5")',
        ],
    ),
    "answers with a label": (
        [{"prompt": "2+2?", "completion": 4, "label": True}, {"prompt": "2+2?", "completion": 5, "label": False}],
        "unpaired-preference",
        ["4", "5"],
        ['`completion` is a number; it is used as text (4 becomes the text "4")'],
    ),
    "turns": (
        [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": n}]} for n in (4, 5)],
        "messages",
        ["4", "5"],
        ['what assistant says in `messages` is a number; it is used as text (4 becomes the text "4")'],
    ),
    "ShareGPT's turns": (
        [{"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": 4}]}],
        "sharegpt",
        ["4"],
        ['what gpt says in `conversations` is a number; it is used as text (4 becomes the text "4")'],
    ),
    "no other column": (
        [{"id": 7, "question": "2+2?", "answer": 4, "score": 0.5, "ok": True}],
        "question-answer",
        ["4"],
        ['`answer` is a number; it is used as text (4 becomes the text "4")'],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_numbers_are_used_as_text_and_that_is_reported(tmp_path: Path, case: str) -> None:
    rows, name, answers, told = ROWS[case]
    source = of(tmp_path, *rows)
    assert source.record.name == name
    assert said(source) == answers
    assert source.remarks == tuple(told)


def test_where_text_and_numbers_are_mixed_the_numbers_are_refused_by_row(tmp_path: Path) -> None:
    source = of(tmp_path, {"question": "a", "answer": 4}, {"question": "b", "answer": "six"})
    assert (said(source), source.remarks) == (["`answer` is a number, not text", "six"], ())


def test_where_all_of_the_first_rows_are_numbers_the_others_must_be(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": n} for n in range(150)]
    others = [{"question": "a", "answer": "six"}, {"question": "b", "answer": True}, {"question": "c", "answer": None}]
    texts = said(of(tmp_path, *rows, *others))
    assert texts[:150] == [str(n) for n in range(150)]
    all_alike = "a number in earlier rows; write all of them as text, in quotes"
    assert texts[150:] == [
        f"`answer` is text, but {all_alike}",
        f"`answer` is true, but {all_alike}",
        "column `answer` is missing",
    ]


@pytest.mark.parametrize("answers", [[4, True], [float("nan")], [float("inf"), 1.0], [[1]], [{"a": 1}], [None]])
def test_what_is_no_number_of_jsons_or_of_two_sorts_is_refused(tmp_path: Path, answers: list[Any]) -> None:
    rows = [{"question": f"{n}?", "answer": answer} for n, answer in enumerate(answers)]
    good = {"question": "a", "answer": "text"}
    assert said(of(tmp_path, *rows, good))[-1] == "text"
    assert all("`answer`" in reason for reason in said(of(tmp_path, *rows, good))[:-1])


def test_the_columns_of_a_prompt_stay_numbers(tmp_path: Path) -> None:
    """A reward function compares them."""
    source = of(tmp_path, {"prompt": "2+2?", "answer": 4})
    assert (source.record.name, source.as_text) == ("prompt-only", ())


def test_numbers_in_rows_that_were_found_under_a_key(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"data": ROWS["whole numbers"][0]}))
    source = understood(file)
    assert said(source) == ["4", "6"]
    assert len(source.remarks) == 2


def test_numbers_under_another_name_and_of_a_named_format(tmp_path: Path) -> None:
    rows = [{"frage": "2+2?", "antwort": 4}]
    assert said(of(tmp_path, *rows, columns={"question": "frage", "answer": "antwort"})) == ["4"]
    named = of(tmp_path, {"question": "2+2?", "answer": 4}, format="question-answer")
    assert said(named) == ["4"]


def test_numbers_of_tables(tmp_path: Path) -> None:
    prices = pa.array([Decimal("3.50"), Decimal("4.00")], pa.decimal128(5, 2))
    for column, answers in (
        (pa.array([4, 6]), ["4", "6"]),
        (pa.array([1.5, 2.0]), ["1.5", "2.0"]),
        (prices, ["3.50", "4.00"]),
    ):
        parquet.write_table(pa.table({"question": ["a", "b"], "answer": column}), tmp_path / "rows.parquet")
        assert said(understood(tmp_path / "rows.parquet")) == answers


def test_the_numbers_of_classes_become_the_names_of_the_classes(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.to_parquet(tmp_path / "rows.parquet")
    source = understood(tmp_path / "rows.parquet", columns={"prompt": "text", "completion": "label"})
    assert said(source) == ["good", "bad"]
    [told] = source.remarks
    assert told.endswith('`completion` holds class numbers; the class names are used (1 becomes the text "good")')
    unlabelled = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    unlabelled.to_parquet(tmp_path / "rows.parquet")
    source = understood(tmp_path / "rows.parquet", columns={"prompt": "text", "completion": "label"})
    assert said(source) == ["good", "`completion` is -1, but no class has this number"]
    judged = datasets.Dataset.from_dict(
        {"prompt": ["a", "b"], "completion": ["x", "y"], "kto_tag": [1, 0]},
        features=datasets.Features(
            {name: datasets.Value("string") for name in ("prompt", "completion")}
            | {"kto_tag": datasets.ClassLabel(names=["bad", "good"])}
        ),
    )
    judged.to_parquet(tmp_path / "rows.parquet")
    source = understood(tmp_path / "rows.parquet")
    assert (source.record.name, source.as_text) == ("unpaired-preference", ())
