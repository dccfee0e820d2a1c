"""Rows are recognised, renamed and converted one by one; what is wrong with one is told with its place."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mlflow_ft import DataFormat, Example, hookimpl, plugins
from mlflow_ft.builtin.formats.conversations import TURN_COLUMNS
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.reading import readers
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.recognising import convert
from mlflow_ft.data.recognising.recognition import Recogniser, check_columns
from mlflow_ft.errors import ConfigError, DataError
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row

LOADED = plugins.load({})
REGISTRY = Registry(LOADED)
SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": "ask"}
ANSWER = {"role": "assistant", "content": "say"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
MESSAGES = {"messages": [USER, ANSWER]}
ALPACA = {"instruction": "ask", "input": "", "output": "say"}
PAIR = {"prompt": "ask", "completion": "say"}
ASKED = Example(messages=(USER, ANSWER))


def rows(*values: Mapping[str, Any]) -> list[Row]:
    return [Row(values=row, file="rows.jsonl", line=number) for number, row in enumerate(values, 1)]


def recognise(*values: Mapping[str, Any], **settings: Any) -> str:
    return Recogniser(settings=DataSection(**settings), plugins=LOADED, registry=REGISTRY).recognise(rows(*values)).name


def converted(name: str, *values: Mapping[str, Any], **settings: Any) -> list[Example | str]:
    """What becomes of rows: an Example, or why there is none."""
    results = convert.convert(rows(*values), REGISTRY.formats[name], DataSection(**settings))
    return [result.reason if isinstance(result, Unreadable) else result[1] for result in results]


# --- which format


@pytest.mark.parametrize(
    ("values", "name"), [(MESSAGES, "messages"), (ALPACA, "alpaca"), (PAIR, "prompt-completion")], ids=str
)
def test_a_format_is_recognised_by_its_columns(values: dict[str, Any], name: str) -> None:
    assert recognise({**values, "source": "elsewhere"}) == name
    assert recognise({"source": "a row without them"}, values) == name


def test_a_format_that_is_named_wins() -> None:
    assert recognise({"text": "x"}, format="alpaca") == "alpaca"
    assert recognise(MESSAGES, format="text") == "text"
    with pytest.raises(ConfigError, match=r"unknown format 'alpacca'\n.*did you mean alpaca\?"):
        recognise(ALPACA, format="alpacca")


def test_rows_of_no_known_format_are_reported_with_their_columns_and_the_columns_that_are_needed() -> None:
    with pytest.raises(DataError) as error:
        recognise({"a": "x"}, {"b": 1})
    told = str(error.value)
    assert "rows.jsonl:1: the rows have no known format; their columns are a, b\n" in told
    assert "messages needs messages; sharegpt needs conversations; alpaca needs instruction, output; prompt-" in told
    with pytest.raises(DataError, match="columns are none"):
        recognise({})


def test_what_would_read_the_rows_and_what_hinders_the_others_is_reported() -> None:
    with pytest.raises(DataError) as error:
        recognise({"text": "x", "label": 1, "messages": "hello"})
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1] == "they are not messages: `messages` is text, not a list of turns"
    assert lines[2] == "to read them anyway: --data.format text"
    assert lines[3] == "to name the columns, for example: --data.columns prompt=COLUMN,completion=COLUMN"


@pytest.mark.parametrize(
    ("values", "meant", "columns"),
    [
        (
            {"instuction": "a", "output": "b"},
            "`instruction` where it says `instuction` (format alpaca)",
            "instruction=instuction",
        ),
        (
            {"Question": "a", "ANSWER": "b"},
            "`question` where it says `Question`, `answer` where it says `ANSWER`",
            "question=Question,answer=ANSWER",
        ),
        (
            {"question": "q", "chosen_text": "a", "rejected_text": "b"},
            "`chosen` where it says `chosen_text`",
            "chosen=chosen_text,rejected=rejected_text",
        ),
        ({"mesages": [USER, ANSWER]}, "`messages` where it says `mesages` (format messages)", "messages=mesages"),
        ({"Text": "a"}, "`text` where it says `Text` (format text)", "text=Text"),
    ],
)
def test_a_column_that_is_nearly_one_gets_a_did_you_mean(values: dict[str, Any], meant: str, columns: str) -> None:
    with pytest.raises(DataError) as error:
        recognise(values)
    assert f"did you mean {meant}" in error.value.hint
    assert error.value.hint.endswith(f"? Fix the file, or add --data.columns {columns}")
    section = DataSection(columns=dict(pair.split("=") for pair in columns.split(",")))
    record = Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).recognise(rows(values))
    [result] = convert.convert(rows(values), record, section)
    assert isinstance(result, tuple), "what the message says helps"


@pytest.mark.parametrize(
    "values",
    [
        {"mesages": "words"},
        {"completions": ["a"], "prompt": "ask", "labels": [True]},
        {"chosen_a": "x", "chosen_b": "y", "rejected_a": "z", "prompt_id": 1},
        {"text_a": "x"},
    ],
)
def test_a_did_you_mean_that_would_not_help_is_not_shown(values: dict[str, Any]) -> None:
    with pytest.raises(DataError) as error:
        recognise(values)
    assert "did you mean" not in str(error.value)


def test_an_error_of_detection_has_a_place_and_shows_the_columns() -> None:
    with pytest.raises(DataError) as error:
        recognise(ALPACA | {"problem": "q", "solution": "a"})
    assert error.value.message == "rows.jsonl:1: the columns fit several formats: alpaca, question-answer"
    assert error.value.hint == (
        "choose one: --data.format alpaca or --data.format question-answer; "
        "the columns are instruction, input, output, problem, solution"
    )


def test_a_plugin_that_comes_later_is_asked_first() -> None:
    own = types.ModuleType("own")

    @hookimpl
    def register_formats() -> list[DataFormat]:
        return [DataFormat(name="own", summary="x", columns=("a",), convert=lambda values: Example(text=values["a"]))]

    @hookimpl
    def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        return "own" if "a" in columns and sample[0]["a"] else None

    vars(own).update(register_formats=register_formats, detect_format=detect_format)
    loaded = plugins.load({})
    assert loaded.add(own, name="own").status == "active"
    settings, registry = DataSection(columns={"a": "mine"}), Registry(loaded)
    for values in ({"mine": "x", **PAIR}, {"mine": "x"}):
        assert Recogniser(settings=settings, plugins=loaded, registry=registry).recognise(rows(values)).name == "own"
    assert (
        Recogniser(settings=settings, plugins=loaded, registry=registry).recognise(rows(PAIR)).name
        == "prompt-completion"
    )


def test_a_format_that_fails_on_rows_of_another_does_not_hide_the_message() -> None:
    own = types.ModuleType("own")
    record = DataFormat(name="own", summary="x", columns=("a",), convert=lambda values: values["b"]["c"])
    vars(own).update(register_formats=hookimpl(lambda: [record]))
    loaded = plugins.load({})
    assert loaded.add(own, name="own").status == "active"
    for values, told in (({"a": 1}, "they are not own: KeyError: 'b'"), ({"x": 1}, "their columns are x\n")):
        with pytest.raises(DataError) as error:
            Recogniser(settings=DataSection(), plugins=loaded, registry=Registry(loaded)).recognise(rows(values))
        assert told in str(error.value)


# --- rows


def test_every_row_is_converted_or_reported_in_its_place() -> None:
    unread = Unreadable(file="rows.jsonl", line=7, reason="malformed JSON")
    given_rows = [*rows(ALPACA, {"instruction": "ask"}), unread, *rows(ALPACA)]
    good, bad, same, last = convert.convert(given_rows, REGISTRY.formats["alpaca"], DataSection())
    assert good == (given_rows[0], ASKED)
    assert bad == Unreadable(file="rows.jsonl", line=2, reason="column `output` is missing", converting=True)
    assert same is unread
    assert last == (given_rows[3], ASKED)


def test_rows_are_converted_one_by_one() -> None:
    """A source need not fit into the memory."""
    seen = []

    def source() -> Any:
        for row in rows(ALPACA, ALPACA):
            seen.append(row)
            yield row

    results = convert.convert(source(), REGISTRY.formats["alpaca"], DataSection())
    assert seen == []
    next(results)
    assert len(seen) == 1


@pytest.mark.parametrize("depth", [100, 10_000])
def test_a_row_without_a_bottom_does_not_stop_the_others(depth: int) -> None:
    deep: Any = {}
    for _ in range(depth):
        deep = {"x": deep}
    tools = [{"name": "f", "parameters": deep}]
    bad, good = converted("messages", MESSAGES | {"tools": tools}, MESSAGES)
    assert bad == "function 1 of `tools` is nested more than 100 levels deep"
    assert good == ASKED


def test_a_format_that_recurses_without_end_is_reported() -> None:
    def forever(values: Mapping[str, Any]) -> Example:
        return forever(values)

    record = DataFormat(name="own", summary="x", columns=("a",), convert=forever)
    [result] = convert.convert(rows({"a": 1}), record, DataSection())
    assert isinstance(result, Unreadable)
    assert result.reason == "nested too deeply"
    assert sys.getrecursionlimit() < 10_000


def test_an_error_of_another_kind_is_a_fault_of_the_format_and_not_hidden() -> None:
    record = DataFormat(name="own", summary="x", columns=("a",), convert=lambda values: values["b"])
    with pytest.raises(KeyError):
        list(convert.convert(rows({"a": 1}), record, DataSection()))


@pytest.mark.parametrize(
    ("values", "question"),
    [
        ({"instruction": "ask", "output": "say"}, "ask"),
        ({"instruction": "ask", "input": None, "output": "say"}, "ask"),
        ({"instruction": "ask", "input": " \n", "output": "say"}, "ask"),
        ({"instruction": "ask", "input": "this", "output": "say"}, "ask\n\nthis"),
    ],
)
def test_alpaca_with_and_without_input(values: dict[str, Any], question: str) -> None:
    assert converted("alpaca", values) == [Example(messages=({"role": "user", "content": question}, ANSWER))]


def test_prompt_and_completion_as_texts_and_as_lists() -> None:
    assert converted("prompt-completion", PAIR) == [ASKED]
    listed = {"prompt": [SYSTEM, USER], "completion": [ANSWER], "tools": [{"name": "n"}]}
    tools = ({"type": "function", "function": {"name": "n"}},)
    assert converted("prompt-completion", listed) == [Example(messages=(SYSTEM, USER, ANSWER), tools=tools)]


def test_messages_lose_what_arrow_filled_in_and_what_follows_the_last_answer() -> None:
    turns = [{**USER, "name": None}, CALL, {"role": "tool", "content": "42"}, ANSWER, {"role": "user", "content": "?"}]
    [example] = converted("messages", {"messages": turns, "tools": []})
    assert isinstance(example, Example)
    assert [turn["role"] for turn in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[0] == USER
    assert "content" not in example.messages[1]
    assert example.tools is None
    assert example.notes == ("1 turn after the last answer left out",)


def test_an_empty_answer_and_a_conversation_that_begins_with_the_assistant_are_not_errors() -> None:
    assert converted("prompt-completion", PAIR | {"completion": " "}) == [
        Example(messages=(USER, {"role": "assistant", "content": " "}))
    ]
    [example] = converted("messages", {"messages": [ANSWER, USER, ANSWER]})
    assert isinstance(example, Example)
    assert example.learned == (False, False, True)
    assert example.notes


# --- data.columns

NAMES = st.text(min_size=1, max_size=6)
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "messages": MESSAGES | {"system": "be kind"},
    "sharegpt": {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
    "alpaca": ALPACA | {"input": "this", "history": [["a", "b"]]},
    "prompt-completion": PAIR,
    "question-answer": {"question": "ask", "answer": "say", "context": "this"},
    "instruction-response": {"instruction": "ask", "response": "say"},
    "text": {"text": "words"},
    "preference": {"prompt": "ask", "chosen": "good", "rejected": "bad"},
    "unpaired-preference": {"prompt": "ask", "completion": "say", "label": True},
    "prompt-only": {"prompt": "ask"},
}


@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_columns_under_other_names_are_read_the_same(name: str, data: st.DataObject) -> None:
    values = LAYOUTS[name]
    own = data.draw(st.lists(NAMES, min_size=len(values), max_size=len(values), unique=True))
    columns = dict(zip(values, own, strict=True))
    written = {columns[column]: value for column, value in values.items()}
    section = DataSection(columns=columns)
    check_columns(list(written), section)
    record = Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).recognise(rows(written))
    [result] = convert.convert(rows(written), record, section)
    assert record.name == name
    assert isinstance(result, tuple)
    assert result[0].values == written, "the row itself stays as it was read"
    assert result[1] == REGISTRY.formats[name].convert(values)


@given(data=st.data())
def test_any_permutation_of_names_is_undone(data: st.DataObject) -> None:
    values = LAYOUTS["preference"] | {"system": "be kind", "input": "this"}
    names = data.draw(st.permutations(list(values)))
    columns = dict(zip(values, names, strict=True))
    written = {columns[column]: value for column, value in values.items()}
    assert converted("preference", written, columns=columns) == converted("preference", values)


@pytest.mark.parametrize(
    "turns",
    [
        [{"who": "user", "words": "ask"}, {"who": "assistant", "words": "say", "learn": False}],
        json.dumps([{"who": "user", "words": "ask"}, {"who": "assistant", "words": "say", "learn": False}]),
    ],
)
def test_the_keys_of_turns_are_renamed_too(turns: Any) -> None:
    columns = {"messages": "talk", "role": "who", "content": "words", "train": "learn"}
    check_columns(["talk"], DataSection(columns=columns))
    assert recognise({"talk": turns}, columns=columns) == "messages"
    [example] = converted("messages", {"talk": turns}, columns=columns)
    assert example == Example(messages=(USER, ANSWER), learned=(False, False))


def test_a_new_name_takes_the_place_of_what_had_it() -> None:
    values = {"problem": "ask", "answer": "2", "solution": "say"}
    assert converted("question-answer", values, columns={"answer": "solution"}) == [ASKED]
    assert convert.renamed(values, DataSection(columns={"answer": "solution"})) == {"problem": "ask", "answer": "say"}
    turns = [
        {"role": "user", "content": "raw", "clean": "ask"},
        {"role": "assistant", "clean": "say", "content": "raw"},
    ]
    assert converted("messages", {"messages": turns}, columns={"content": "clean"}) == [ASKED]
    lacking = {"problem": "ask", "answer": "say"}
    assert converted("question-answer", lacking, columns={"answer": "solution"}) == [ASKED], "where the row lacks it"


def test_only_the_keys_that_turns_have_are_renamed_in_them() -> None:
    values = {"messages": [USER, ANSWER], "content": "words"}
    assert convert.renamed(values, DataSection(columns={"text": "content"})) == {
        "messages": [USER, ANSWER],
        "text": "words",
    }


def test_text_that_looks_like_json_stays_as_it_is() -> None:
    columns = {"role": "who", "content": "words"}
    for text in ("[1, 2]", "{broken", '{"x": 1}', "[INST]"):
        values = {"prompt": "ask", "completion": text}
        assert convert.renamed(values, DataSection(columns=columns)) == values


def test_without_new_names_a_row_is_handed_on_as_it_is() -> None:
    assert convert.renamed(ALPACA, DataSection()) is ALPACA


CHECKED: Mapping[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"columns": {"instruction": "frage"}},
        r"data\.columns: no row has a column 'frage'\n.*are ask, answer, id$",
    ),
    "nearly": ({"columns": {"question": "aks"}}, r"'aks'\n.*; did you mean ask\?$"),
    "turned round": ({"columns": {"id": "question"}}, r"'question'\n.*; did you mean question=id\?$"),
    "no group": ({"split_by": "zzz"}, r"data\.split_by: no row has a column 'zzz'\n.*are ask, answer, id$"),
    "a group": ({"split_by": "idd"}, r"data\.split_by: no row has a column 'idd'\n.*answer, id; did you mean id\?$"),
}


@pytest.mark.parametrize("case", CHECKED)
def test_a_column_that_no_row_has_is_reported(case: str) -> None:
    settings, message = CHECKED[case]
    with pytest.raises(DataError, match=rf"(?s){message}"):
        check_columns(["ask", "answer", "id"], DataSection(**settings))


def test_columns_that_exist_are_not_reported() -> None:
    section = DataSection(columns={"question": "ask", "role": "who", "content": "words"}, split_by="id")
    check_columns(["ask", "answer", "id"], section)


# --- data.system


def test_a_system_prompt_is_set_where_there_is_none() -> None:
    values = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    [example] = converted("messages", values, system="be kind")
    assert isinstance(example, Example)
    assert (example.messages[0], example.learned) == (SYSTEM, (False, False, False, False, True))
    [own] = converted("alpaca", ALPACA | {"system": "be short"}, system="be kind")
    assert isinstance(own, Example)
    assert own.messages[0] == {"role": "system", "content": "be short"}
    assert converted("alpaca", ALPACA, system="") == [ASKED]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_system_prompt_comes_first_in_every_kind_but_text(name: str) -> None:
    values = {key: value for key, value in LAYOUTS[name].items() if key != "system"}
    [plain], [with_prompt] = converted(name, values), converted(name, values, system="be kind")
    assert isinstance(plain, Example)
    assert isinstance(with_prompt, Example)
    if name == "text":
        assert with_prompt == plain
    else:
        assert with_prompt.messages == (SYSTEM, *plain.messages)
        assert (with_prompt.kind, with_prompt.chosen, with_prompt.rejected, with_prompt.label) == (
            plain.kind,
            plain.chosen,
            plain.rejected,
            plain.label,
        )
        assert all(len(messages) == len(learned) for messages, learned in with_prompt.conversations)


# --- what is wrong

BAD: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "no list": ("messages", {"messages": "text"}, "`messages` is text, not a list of turns"),
    "no turns": ("messages", {"messages": []}, "`messages` has no turns"),
    "no object": ("messages", {"messages": [USER, "say"]}, "turn 2 of `messages` is text, not an object with `role`"),
    "role": (
        "messages",
        {"messages": [USER, {"role": "gtp", "content": "x"}]},
        "turn 2 of `messages` has the unknown role 'gtp'",
    ),
    "no text": (
        "messages",
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "turn 2 of `messages` has no",
    ),
    "no answer": ("messages", {"messages": [USER]}, "the conversation has no assistant turn"),
    "missing": ("alpaca", {"instruction": "ask"}, "column `output` is missing"),
    "none": ("alpaca", {**ALPACA, "output": None}, "column `output` is missing"),
    "number": ("alpaca", {**ALPACA, "output": 7}, "`output` is a number, not text"),
    "input": ("alpaca", {**ALPACA, "input": 7}, "`input` is a number, not text"),
    "preference": ("preference", PAIR, "column `chosen` is missing"),
    "label": ("unpaired-preference", PAIR, "column `label` is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_does_not_fit_is_reported_in_one_sentence(case: str) -> None:
    name, values, message = BAD[case]
    [reason] = converted(name, values)
    assert isinstance(reason, str)
    assert reason.startswith(message)


def test_good_and_bad_answers_together_are_not_learned_in_silence() -> None:
    for values, name in ((MESSAGES, "messages"), (PAIR, "prompt-completion")):
        assert recognise(values | {"label": True}, values | {"label": False}) == "unpaired-preference"
        assert recognise(values | {"label": False}, format=name) == name
        assert recognise(values | {"label": "sports"}) == name
        with pytest.raises(DataError, match="the columns fit several formats: unpaired-preference, "):
            recognise(values | {"label": 1}, values | {"label": 0})


def test_every_turn_column_is_known_to_be_one() -> None:
    for column in TURN_COLUMNS:
        assert recognise({column: [USER, ANSWER]}) == "messages"


def test_columns_for_rewards_keep_the_nulls_of_their_table(tmp_path: Path) -> None:
    """A reward function may ask for a key that is null in some rows."""
    given_rows = [
        {"prompt": "a", "tests": [{"input": "1", "expected": None}], "about": {"x": 1, "y": None}},
        {"prompt": "b", "tests": [{"input": None, "expected": "2"}], "about": {"x": None, "y": 2}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(given_rows), tmp_path / "rows.parquet")
    section = DataSection(columns={"prompt": "prompt", "extra": "about"})
    read = list(readers.read_file(tmp_path / "rows.parquet"))
    results = [
        result[1].columns
        for result in convert.convert(read, REGISTRY.formats["prompt-only"], section)
        if isinstance(result, tuple)
    ]
    assert results == [{"tests": row["tests"], "extra": row["about"]} for row in given_rows]
