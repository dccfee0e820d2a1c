"""What a message tells a person to do about a file was tried on that file: whoever does it has rows that are read."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mlflow_ft.data.recognising.convert import renamed
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row
from tests.data.reading.test_shapes import MESSAGES, A, B, understood

FLAT = [{**turn, "talk": number} for number, talk in enumerate((A, B + A)) for turn in talk]
PAIRS = [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "y"}]


def by_column(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: {str(number): row[name] for number, row in enumerate(rows)} for name in rows[0]}


FILES: dict[str, tuple[Any, list[list[dict[str, Any]]]]] = {
    "turns": (A + B, [[{"messages": A + B}], MESSAGES]),
    "turns that name their conversation": (
        FLAT,
        [
            [{"messages": FLAT[:2]}, {"messages": FLAT[2:]}],
            [{"messages": FLAT}],
            [{"messages": FLAT[at : at + 2]} for at in (0, 2, 4)],
        ],
    ),
    "turns with a system prompt": (
        [{"role": "system", "content": "s"}, *A],
        [[{"messages": [{"role": "system", "content": "s"}, *A]}]],
    ),
    "columns that are lists": ({name: [row[name] for row in PAIRS] for name in PAIRS[0]}, [PAIRS]),
    "a table as pandas writes it": (by_column(PAIRS), [PAIRS]),
    "a table by row": ({str(number): row for number, row in enumerate(PAIRS)}, [PAIRS]),
    "names apart": (
        {"columns": list(PAIRS[0]), "index": [0, 1], "data": [list(row.values()) for row in PAIRS]},
        [PAIRS],
    ),
    "a header": (
        [["question", "answer", "id"], ["a", "x", "1"], ["b", "y", "2"]],
        [[{"question": "a", "answer": "x", "id": "1"}, {"question": "b", "answer": "y", "id": "2"}]],
    ),
    "pairs": ([["a", "x"], ["b", "y"]], [PAIRS]),
    "texts": (["a", "b"], [[{"text": "a"}, {"text": "b"}]]),
    "two places": ({"en": MESSAGES, "de": PAIRS}, [MESSAGES]),
    "prompts in a wrapper": (
        [{"id": 1, "body": {"prompt": "a"}}, {"id": 2, "body": {"prompt": "b"}}],
        [[{"prompt": "a"}, {"prompt": "b"}]],
    ),
    "Gemini's turns": (
        [
            {
                "systemInstruction": {"parts": [{"text": "s"}]},
                "contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "x"}]}],
            },
            {"contents": [{"role": "user", "parts": [{"text": "b"}]}, {"role": "model", "parts": [{"text": "y"}]}]},
        ],
        [
            [
                {"messages": [{"role": "system", "content": "s"}, A[0], {"role": "model", "content": "x"}]},
                {"messages": [B[0], {"role": "model", "content": "y"}]},
            ]
        ],
    ),
    "a log of requests": (
        [{"request": {"messages": A[:1]}, "response": {"choices": [{"message": A[1]}]}}],
        [[{"messages": A}]],
    ),
    "rounds or rows": (
        [[{"input": "a", "output": "x"}], [{"input": "b", "output": "y"}]],
        [
            [{"messages": [{"input": "a", "output": "x"}]}, {"messages": [{"input": "b", "output": "y"}]}],
            [{"input": "a", "output": "x"}, {"input": "b", "output": "y"}],
        ],
    ),
}


def commands(file: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        understood(file)
    return [line.strip() for line in str(error.value).splitlines() if line.strip().startswith("python -c ")]


def done(command: str, folder: Path) -> list[Any]:
    """The rows that a command of a message writes, as they are read then."""
    process = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    written = re.search(r"# then --data (\S+)$", command)
    assert written
    return [row.values for row in understood(folder / written[1]).source.rows() if isinstance(row, Row)]


@pytest.mark.parametrize("case", FILES)
def test_following_the_message_gives_rows(tmp_path: Path, case: str) -> None:
    value, expected = FILES[case]
    (tmp_path / "rows.json").write_text(json.dumps(value, indent=1))
    assert [done(command, tmp_path) for command in commands(tmp_path / "rows.json")] == expected


@pytest.mark.parametrize("case", [case for case in FILES if isinstance(FILES[case][0], list)])
def test_the_same_for_json_lines(tmp_path: Path, case: str) -> None:
    value, expected = FILES[case]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, value)))
    assert [done(command, tmp_path) for command in commands(tmp_path / "rows.jsonl")] == expected


def test_the_same_for_a_table_or_a_file_with_an_odd_name(tmp_path: Path) -> None:
    expected = [{"messages": A + B}]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["role", "content"], delimiter=";")
        writer.writeheader()
        writer.writerows(A + B)
    parquet.write_table(pa.Table.from_pylist(A + B), tmp_path / "rows.parquet")
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(A + B).encode()))
    (tmp_path / 'it\'s "odd" $HOME `x`.jsonl').write_text("\n".join(map(json.dumps, A + B)))
    for file in list(tmp_path.iterdir()):
        first, _ = commands(file)
        assert done(first, tmp_path) == expected


def test_a_compression_that_python_does_not_know_gets_no_command(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.zst").write_bytes(
        pa.compress("\n".join(map(json.dumps, A)).encode(), codec="zstd", asbytes=True)
    )
    with pytest.raises(DataError, match=r"if all turns are one conversation: as JSON lines \(\.jsonl\)"):
        understood(tmp_path / "rows.jsonl.zst")


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "two texts": ({"frage": "a", "antwort": "x"}, "x"),
    "who speaks as columns": ({"system": "s", "user": "a", "assistant": "x", "id": "1"}, "x"),
    "turns under another name": ({"id": 1, "transcript": A}, "x"),
    "turns and their keys": (
        {
            "id": 1,
            "log": [
                {"at": "9:00", "who": "customer", "said": "hello"},
                {"at": "9:01", "who": "agent", "said": "Good day"},
            ],
        },
        "Good day",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_the_names_that_a_message_gives_columns_read_the_rows(tmp_path: Path, case: str) -> None:
    row, answer = COLUMNS[case]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError) as error:
        understood(tmp_path / "rows.jsonl")
    match = re.search(r"if these are the right columns: --data\.columns (\S+)$", str(error.value), re.MULTILINE)
    assert match
    given = dict(pair.split("=") for pair in match[1].split(","))
    read = understood(tmp_path / "rows.jsonl", columns=given)
    assert read.record.convert(renamed(row, read.source.settings)).answer == answer


LOGS: dict[str, Any] = {
    "Discord": {
        "guild": {"name": "g"},
        "messages": [
            {"type": "Default", "content": "hello", "author": {"id": "1", "name": "ann"}},
            {"type": "Default", "content": "hi", "author": {"id": "2", "name": "bob"}},
        ],
    },
    "Slack": [
        {"type": "message", "user": "ann", "text": "hello", "ts": "1"},
        {"type": "message", "user": "bob", "text": "hi", "ts": "2"},
    ],
    "Messenger": {
        "title": "t",
        "messages": [
            {"sender_name": "ann", "timestamp_ms": 1, "content": "hello"},
            {"sender_name": "bob", "timestamp_ms": 2, "content": "hi"},
        ],
    },
}


@pytest.mark.parametrize("program", LOGS)
def test_a_log_of_people_is_refused_with_a_row_that_would_be_one(tmp_path: Path, program: str) -> None:
    (tmp_path / "log.json").write_text(json.dumps(LOGS[program]))
    with pytest.raises(DataError) as error:
        understood(tmp_path / "log.json")
    told = str(error.value)
    assert "this is a chat log ('ann', 'bob')" in told
    assert "for 'bob':" in told
    row = json.loads(told.splitlines()[-1])
    assert row == {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


def test_for_rows_that_nothing_helps_the_hint_says_what_formats_need(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"a": 1, "b": [2]}]))
    with pytest.raises(DataError, match="messages needs messages; sharegpt needs conversations; alpaca needs"):
        understood(tmp_path / "rows.json")
