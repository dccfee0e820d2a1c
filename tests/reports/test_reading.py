"""Public reports about reading data in other tools: each case is read correctly here, or refused with a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from mlflow import MlflowClient

from mlflow_ft.data import store
from mlflow_ft.rows import Example
from tests.cli.conftest import Run

USER = {"role": "user", "content": "Log now"}
DONE = {"role": "assistant", "content": "Logged."}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


TOOLS = [
    tool("alarm", time={"type": "string"}),
    tool("log", time={"type": ["integer", "null"]}, tags={"type": "array"}, note={"type": "string", "default": None}),
]
MIXED = [
    {"tools": TOOLS, "messages": [USER, calling("alarm", time="06:00"), {"role": "tool", "content": "set"}, DONE]},
    {
        "tools": TOOLS,
        "messages": [
            USER,
            calling("log", time=17, tags=["a", None], note=None),
            {"role": "tool", "content": "ok"},
            DONE,
        ],
    },
]
WRITTEN = [
    '{"name": "alarm", "arguments": {"time": "06:00"}}',
    '{"name": "log", "arguments": {"time": 17, "tags": ["a", null], "note": null}}',
]


@pytest.fixture
def show(run: Run, tiny_model: Path, client: MlflowClient) -> Callable[..., list[dict[str, Any]]]:
    """The rows of `data show`, each with its text and what is learned of it."""

    def rows(data: Path, *more: Any) -> list[dict[str, Any]]:
        result = run("data", "show", "--data", data, "--model", tiny_model, "--json", *more)
        assert result.code == 0, result.err
        shown = [json.loads(line) for line in result.out.splitlines()]
        for row in shown:
            row["text"] = "".join(row["tokens"])
            row["learned"] = "".join(t for t, s in zip(row["tokens"], row["supervised"], strict=True) if s)
            row["told"] = result.err
        return shown

    return rows


@pytest.fixture
def refused(run: Run, tiny_model: Path, client: MlflowClient) -> Callable[..., str]:
    """What `data check` says of data that cannot be used."""

    def words(data: Path, *more: Any) -> str:
        result = run("data", "show", "--data", data, "--model", tiny_model, *more)
        assert result.code == 2, result.out
        return result.err

    return words


def lines(file: Path, *values: Any) -> Path:
    file.write_text("\n".join(json.dumps(value) for value in values))
    return file


Show = Callable[..., list[dict[str, Any]]]


# --- nulls and mixed types


def test_a_null_argument_of_a_json_file_is_kept(tmp_path: Path, show: Show) -> None:
    """axolotl#3136, huggingface/datasets#7617."""
    first, second = show(lines(tmp_path / "rows.jsonl", *MIXED))
    assert WRITTEN[0] in first["learned"]
    assert WRITTEN[1] in second["learned"]
    assert '"default": null' in second["text"]
    stored = Example(messages=tuple(second["messages"]), tools=tuple(TOOLS))
    assert store.from_json(store.to_json(stored)) == stored


def test_nulls_with_which_a_table_is_padded_are_left_out(tmp_path: Path, show: Show) -> None:
    """axolotl#3136, huggingface/datasets#7617: what other rows have is null in this one."""
    rows = [
        {"messages": [USER, calling("alarm", time="06:00"), DONE]},
        {"messages": [USER, calling("log", note="b"), DONE]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    first, second = show(tmp_path / "rows.parquet")
    assert '{"name": "alarm", "arguments": {"time": "06:00"}}' in first["learned"]
    assert '{"name": "log", "arguments": {"note": "b"}}' in second["learned"]


def test_the_padding_of_a_table_that_was_written_as_json_is_told(
    tmp_path: Path, run: Run, tiny_model: Path, client: MlflowClient
) -> None:
    row = {"tools": TOOLS[:1], "messages": [USER, calling("alarm", time="06:00", tags=None, note=None), DONE]}
    result = run("data", "check", "--data", lines(tmp_path / "rows.jsonl", row, row), "--model", tiny_model)
    assert "turn 2 calls alarm with null for tags, note, which the tool does not declare" in result.out


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("column", ["tools", "messages"])
def test_columns_of_the_json_type_are_read_as_json(tmp_path: Path, show: Show, column: str, *, saved: bool) -> None:
    """huggingface/datasets#8027: the two columns of mixed types, in Parquet and in a saved data set."""
    rows = [MIXED[0], {**MIXED[1], "tools": [TOOLS[1]]}]
    if column == "tools":
        rows = [{"tools": row["tools"], "messages": [USER, DONE]} for row in rows]
    made = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in repr(made.features[column])
    data = tmp_path / ("saved" if saved else "rows.parquet")
    made.save_to_disk(data) if saved else made.to_parquet(data)
    expected = show(lines(tmp_path / "rows.jsonl", *rows))
    for shown, other in zip(show(data), expected, strict=True):
        assert '\\"' not in shown["text"]
        if column == "messages":
            assert (shown["text"], shown["learned"]) == (other["text"], other["learned"])


# --- exports of chats


def turns(*said: str) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": words} for speaker, words in zip(["human", "gpt"] * len(said), said, strict=False)
    ]


EXPORTS: dict[str, tuple[Any, list[str]]] = {
    "unsloth#8733: the rows are under a key": ({"data": [{"conversations": turns("a", "b")}]}, ["b"]),
    "unsloth#8733: and beside others": ({"version": "1", "items": [{"conversations": turns("a", "b")}]}, ["b"]),
    "unsloth#337: a list of lists": ([turns("a", "b"), turns("c", "d")], ["b", "d"]),
    "unsloth#321: several conversations in one": ([{"conversations": [turns("a", "b"), turns("c", "d")]}], ["b", "d"]),
}


@pytest.mark.parametrize("report", EXPORTS)
def test_an_export_of_chats_that_is_plain_is_read(tmp_path: Path, show: Show, report: str) -> None:
    value, answers = EXPORTS[report]
    (tmp_path / "rows.json").write_text(json.dumps(value))
    rows = show(tmp_path / "rows.json")
    assert [row["learned"] for row in rows] == [f"{answer}<|im_end|>" for answer in answers]
    assert "read" in rows[0]["told"] or "the rows are under" in rows[0]["told"]


def test_flat_turns_are_refused_with_what_to_type(tmp_path: Path, refused: Callable[..., str]) -> None:
    """unsloth#337: one conversation, or many?"""
    result = refused(lines(tmp_path / "flat.jsonl", *turns("a", "b", "c", "d")))
    assert "each row is one turn, but a row must be a whole conversation" in result
    assert result.count("python -c ") == 2


# --- CSV

CSV: dict[str, tuple[bytes, str]] = {
    "a mark, CRLF, an index": (b'\xef\xbb\xbf,prompt,completion\r\n0,a,"b\nc"\r\n', "b\nc<|im_end|>"),
    "semicolons": (b"prompt;completion\na;b\n", "b<|im_end|>"),
    "what looks like numbers and nothing": (b"prompt,completion\na,0042\n", "0042<|im_end|>"),
    "NaN": (b"prompt,completion\na,NaN\n", "NaN<|im_end|>"),
}


@pytest.mark.parametrize("case", CSV)
def test_csv_is_read_as_it_is_written(tmp_path: Path, show: Show, case: str) -> None:
    """unsloth#4470, unsloth#6131."""
    data, learned = CSV[case]
    (tmp_path / "rows.csv").write_bytes(data)
    [row] = show(tmp_path / "rows.csv")
    assert row["learned"] == learned


@pytest.mark.parametrize(("encoding", "words"), [("latin-1", "not UTF-8 text"), ("utf-16", "it looks like UTF-16")])
def test_csv_in_another_encoding_is_refused(
    tmp_path: Path, refused: Callable[..., str], encoding: str, words: str
) -> None:
    """unsloth#4470, unsloth#6131."""
    (tmp_path / "rows.csv").write_bytes("prompt,completion\né,b\n".encode(encoding))
    assert words in refused(tmp_path / "rows.csv")


# --- turns


def role(*said: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[message[0]], "content": message[2:]} for message in said]


def test_turns_in_another_order_are_read_or_told(tmp_path: Path, show: Show, run: Run, tiny_model: Path) -> None:
    """unsloth#334, huggingface/smol-course#260: two turns of the user, two of the assistant, a system prompt."""
    odd = [role("u:a", "u:b", "a:c"), role("u:a", "a:b", "a:c"), role("s:s", "u:a", "a:b")]
    data = lines(tmp_path / "rows.jsonl", *({"messages": messages} for messages in odd))
    first, second, third = show(data)
    assert (first["learned"], third["learned"]) == ("c<|im_end|>", "b<|im_end|>")
    assert second["learned"] == "b<|im_end|>c<|im_end|>"
    result = run("data", "check", "--data", data, "--model", tiny_model)
    assert result.code == 1
    assert "two user turns in a row" in result.out


def test_preferences_with_tools_and_calls_in_what_is_asked(tmp_path: Path, show: Show) -> None:
    """axolotl#3824: null content, thoughts in the answers."""
    prompt = [USER, calling("log", note=None), {"role": "tool", "content": "ok"}]
    thought = {"role": "assistant", "content": "<think>hm</think>Done."}
    row = {"tools": TOOLS, "prompt": prompt, "chosen": [thought], "rejected": [{"role": "assistant", "content": "No."}]}
    [shown] = show(lines(tmp_path / "rows.jsonl", row))
    assert shown["learned"].endswith("Done.<|im_end|>")
    assert '{"name": "log", "arguments": {"note": null}}' in shown["text"]


def test_a_folder_with_reports_beside_the_rows_names_them(
    tmp_path: Path, run: Run, tiny_model: Path, client: MlflowClient
) -> None:
    """unsloth#7585."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines(folder / "rows.jsonl", {"messages": role("u:a", "a:b")})
    (folder / "filter_report.json").write_text('{"kept": 1, "dropped": 0}')
    (folder / "requirements.txt").write_text("torch\n")
    result = run("train", "lora", "--data", folder, "--model", tiny_model)
    assert result.code == 2
    assert "2 of 3 rows are not in the format messages" in result.err
    assert f"{folder}/filter_report.json:1  column `messages` is missing" in result.err
    assert "--data.on_bad_row drop" in result.err


def test_a_setting_longer_than_mlflow_keeps_is_used_and_kept_whole(
    tmp_path: Path, run: Run, tiny_model: Path, client: MlflowClient
) -> None:
    """huggingface/transformers#8849 and its relatives: a parameter of more than 6,000 letters."""
    system = "Be kind. " * 1000
    rows = [{"messages": role(f"u:ask {n}", f"a:say {n}")} for n in range(12)]
    data = lines(tmp_path / "rows.jsonl", *rows)
    result = run("prepare", "--data", data, "--model", tiny_model, "--data.system", system, "--max_length", 9999)
    assert result.code == 0, result.err
    run_id = re.search(r"  run +(\w+)", result.err + result.out)
    assert run_id
    tracked = client.get_run(run_id[1])
    assert len(tracked.data.params["cfg.data.system"]) <= 6000
    folder = tmp_path / "artifacts"
    folder.mkdir()
    assert system in Path(client.download_artifacts(run_id[1], "config.yaml", str(folder))).read_text()
    assert system in Path(client.download_artifacts(run_id[1], "data/mask.txt", str(folder))).read_text()


# --- open shapes

PART = {"type": "text", "text": "Rain."}
OPEN: dict[str, tuple[Any, str]] = {
    "parts of Anthropic's": (
        {"messages": [*role("u:a"), {"role": "assistant", "content": [PART, {"type": "tool_use", "name": "f"}]}]},
        "turn 2 of `messages` has a part of type 'tool_use' in `content`; put the call into `tool_calls`",
    ),
    "a thought as a part": (
        {"messages": [*role("u:a"), {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, PART]}]},
        "a part of type 'thinking' in `content`; put the reasoning into `reasoning_content` of the turn",
    ),
    "an unknown role": (
        {"messages": [*role("u:a"), {"role": "moderator", "content": "x"}, *role("a:b")]},
        "turn 2 of `messages` has the unknown role 'moderator'",
    ),
    "NaN": ({"instruction": "a", "input": float("nan"), "output": "b"}, "`input` is a number, not text"),
    "answers with nothing in common": (
        {"chosen": role("s:s", "u:a", "a:b"), "rejected": role("u:a", "a:c")},
        "`chosen` and `rejected` do not begin with the same turn",
    ),
    "a picture in a turn": (
        {"messages": [{"role": "user", "content": "<image>", "images": ["a.png"]}, *role("a:b")]},
        "turn 1 of `messages` has images or audio in `images`",
    ),
    "a part of a weight": (
        {"messages": [*role("u:a"), {"role": "assistant", "content": "b", "weight": 0.5}]},
        "has 0.5 in `weight`; a turn is learned or not",
    ),
}
GOOD = {
    "messages": {"messages": role("u:a", "a:b")},
    "instruction": {"instruction": "a", "input": "", "output": "b"},
    "chosen": {"chosen": role("u:a", "a:b"), "rejected": role("u:a", "a:c")},
}


@pytest.mark.parametrize("case", OPEN)
def test_a_shape_that_is_not_read_is_refused_in_words_that_help(tmp_path: Path, show: Show, case: str) -> None:
    value, words = OPEN[case]
    good, bad = show(lines(tmp_path / "rows.jsonl", GOOD[next(iter(value))], value))
    assert good["dropped"] is None
    assert words in bad["dropped"]


def test_answers_that_go_different_ways_are_compared(tmp_path: Path, show: Show) -> None:
    [row] = show(
        lines(
            tmp_path / "r.jsonl",
            {"chosen": role("u:a", "a:b", "u:c", "a:d"), "rejected": role("u:a", "a:x", "u:c", "a:y")},
        )
    )
    assert row["learned"] == "b<|im_end|>d<|im_end|>"


def test_a_label_that_is_null_is_refused_by_row(tmp_path: Path, show: Show) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, None)]
    good, bad = show(lines(tmp_path / "r.jsonl", *rows), "--data.format", "unpaired-preference")
    assert good["dropped"] is None
    assert bad["dropped"] == "column `label` is missing"


READ: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "numbers as answers": ([{"question": "2+2?", "answer": 4}, {"question": "3+3?", "answer": 6}], ["4", "6"]),
    "chosen_messages": (
        [{"chosen_messages": role("u:a", "a:b"), "rejected_messages": role("u:a", "a:c"), "chosen_score": 1.5}],
        ["b"],
    ),
    "parts with value": (
        [{"messages": [*role("u:a"), {"role": "assistant", "content": [{"type": "text", "value": "b"}]}]}],
        ["b"],
    ),
    "parts of OpenAI's threads": (
        [{"messages": [*role("u:a"), {"role": "assistant", "content": [{"type": "text", "text": {"value": "b"}}]}]}],
        ["b"],
    ),
    "a weight for every turn": ([{"messages": role("u:a", "a:b", "u:c", "a:d"), "weights": [0, 0, 0, 1]}], ["d"]),
    "a weight for every answer": ([{"messages": role("u:a", "a:b", "u:c", "a:d"), "weights": [1, 0]}], ["b"]),
}


@pytest.mark.parametrize("case", READ)
def test_a_shape_that_is_plain_is_read(tmp_path: Path, show: Show, case: str) -> None:
    rows, answers = READ[case]
    shown = show(lines(tmp_path / "rows.jsonl", *rows))
    assert [row["learned"] for row in shown] == [f"{answer}<|im_end|>" for answer in answers]


# --- files that are cut


def cut(text: str) -> Iterator[str]:
    yield from (text[: int(len(text) * share)] for share in (0.5, 0.6, 0.7, 0.8, 0.9))


def test_a_list_that_is_cut_is_refused_where_it_ends(tmp_path: Path, refused: Callable[..., str]) -> None:
    """unsloth#8733 and its relatives: not at column 1."""
    rows = [{"messages": role(f"u:ask {n}", f"a:say {n}")} for n in range(4)]
    for indent in (None, 1):
        for text in cut(json.dumps(rows, indent=indent)):
            (tmp_path / "rows.json").write_text(text)
            result = refused(tmp_path / "rows.json")
            line, column = text.count("\n") + 1, len(text) - text.rfind("\n") - 1
            place = f"at line {line}, column {column}" if column else f"with line {line - 1}"
            assert f"and the file ends {place}: it is truncated" in result
            assert f"rows.json:{line}: malformed JSON" in result
            assert "complete row" in result
