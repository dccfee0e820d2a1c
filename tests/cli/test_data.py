"""The commands that inspect data: their output as text and as JSON, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Result, Run

SHARED = Path(__file__).parents[3] / "shared" / "data"
QUESTION, ANSWER = {"role": "user", "content": "red"}, {"role": "assistant", "content": "green"}


@pytest.fixture
def data(tmp_path: Path, client: MlflowClient) -> Path:
    """Three good rows, one of them with a turn that is not learned, and one invalid row."""
    untrained = {"role": "assistant", "content": "blue", "train": False}
    rows = [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, untrained, QUESTION, ANSWER]},
        {"messages": [{"role": "user"}]},
        {"messages": [QUESTION, {"role": "assistant", "content": "flat"}]},
    ]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def as_rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_show_prints_a_json_object_for_every_row(run: Run, data: Path, tiny_model: Path) -> None:
    result = run("data", "show", "--data", data, "--model", tiny_model, "--json")
    assert result.code == 0, result.err
    rows = as_rows(result)
    assert [row["row"] for row in rows] == [row["line"] for row in rows] == [1, 2, 3, 4]
    assert {"row", "format", "messages", "tokens", "supervised", "dropped"} <= set(rows[0])
    assert rows[0]["format"] == "messages"
    assert rows[0]["messages"] == [QUESTION, ANSWER]
    for row in rows:
        assert len(row["tokens"]) == len(row["supervised"])
        assert set(row["supervised"]) <= {0, 1}
    assert rows[2]["dropped"] == "turn 1 of `messages` has no text in `content`"
    assert [row["dropped"] for row in rows if row["row"] != 3] == [None] * 3
    whole = "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    assert "".join(rows[0]["tokens"]) == whole.format("green")
    assert learned(rows[0]) == "green<|im_end|>"
    assert learned(rows[1]) == "green<|im_end|>", "the turn with train: false is read, not learned"
    assert "blue" in "".join(rows[1]["tokens"])
    assert "4 rows; 1 dropped" in result.err


def learned(row: dict[str, Any]) -> str:
    return "".join(text for text, flag in zip(row["tokens"], row["supervised"], strict=True) if flag)


def test_show_stops_after_as_many_rows_as_wanted(run: Run, data: Path, tiny_model: Path) -> None:
    result = run("data", "show", data, "--model", tiny_model, "--json", "--limit", 2)
    assert [row["row"] for row in as_rows(result)] == [1, 2]
    result = run("data", "show", data, "--model", "no-model", "--limit", "0")  # checked before the model is looked for
    assert result.code == 2
    assert "--limit: '0' is not a whole number above 0" in result.err


def test_show_marks_what_is_learned_for_people(run: Run, data: Path, tiny_model: Path) -> None:
    result = run("data", "show", data, "--model", tiny_model)
    assert f"{data}:1  messages  2 of " in result.out
    assert "(prefix differences)" in result.out
    assert "<|im_start|>assistant\n[[green<|im_end|>]]\n" in result.out
    assert f"{data}:3  messages" in result.out
    assert "dropped: turn 1 of `messages` has no text in `content`" in result.out


def test_show_prints_both_answers_of_a_preference(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    pair = {"prompt": "red", "chosen": "green", "rejected": "blue"}
    data = write_jsonl(tmp_path / "pairs.jsonl", [pair])
    [row] = as_rows(run("data", "show", data, "--model", tiny_model, "--json"))
    assert learned(row) == "green<|im_end|>"
    assert learned(row["rejected"]) == "blue<|im_end|>"
    assert row["rejected"]["messages"][-1] == {"role": "assistant", "content": "blue"}
    result = run("data", "show", data, "--model", tiny_model)
    assert "rejected:\n" in result.out
    assert "[[blue<|im_end|>]]" in result.out


def test_show_reports_rows_that_are_cut(run: Run, data: Path, tiny_model: Path) -> None:
    rows = as_rows(run("data", "show", data, "--model", tiny_model, "--json", "--max_length", 8))
    assert all(len(row["tokens"]) <= 8 for row in rows)
    assert "cut at data.max_length 8 before anything is learned" in rows[0]["dropped"]


def test_show_says_what_is_cut_of_a_row(run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient) -> None:
    """The last token of a row, a line end, is not learned; the one before it ends the turn."""
    pair = {"prompt": "red", "chosen": "green", "rejected": "blue green red"}
    data = write_jsonl(tmp_path / "rows.jsonl", [pair])
    [whole] = as_rows(run("data", "show", data, "--model", tiny_model, "--json"))
    count, other = len(whole["tokens"]), len(whole["rejected"]["tokens"])
    assert other > count
    assert (whole["cut"], whole["rejected"]["cut"]) == (None, None)
    [line_end] = as_rows(run("data", "show", data, "--model", tiny_model, "--json", "--max_length", count - 1))
    assert line_end["cut"] == {
        "max_length": count - 1,
        "tokens": count,
        "cut_away": 1,
        "learned_cut_away": 0,
        "end_of_turn_lost": False,
    }
    assert line_end["rejected"]["cut"]["end_of_turn_lost"]
    result = run("data", "show", data, "--model", tiny_model, "--max_length", count - 2)
    assert (
        f"cut at data.max_length {count - 2}: 2 of {count} tokens are left out, 1 of them learned, including the"
        in result.out
    )
    assert f"--data.max_length {count} keeps all" in result.out
    assert f"--data.max_length {other} keeps all" in result.out
    assert f"1 row; 1 cut at data.max_length {count - 2}" in result.err
    [none] = as_rows(run("data", "show", data, "--model", tiny_model, "--json", "--max_length", 8))
    assert none["cut"]["learned_cut_away"] == sum(whole["supervised"])
    assert "before anything is learned" in none["dropped"]


def test_a_reader_that_has_seen_enough_ends_it_quietly(data: Path, tiny_model: Path) -> None:
    write_jsonl(data, [{"messages": [QUESTION, ANSWER]}] * 2000)
    command = f"{sys.executable} -m mlflow_ft data show {data} --model {tiny_model} --json | head -1"
    completed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(completed.stdout)["row"] == 1
    assert "Traceback" not in completed.stderr


# --- check


def rows_with_faults() -> list[Any]:
    good = [{"instruction": f"ask number {n}", "output": f"answer number {n}"} for n in range(20)]
    return [*good, good[4], {"instruction": "nothing", "output": " "}, {"instruction": "none"}]


def test_check_prints_the_report(run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows_with_faults())
    result = run("data", "check", "--data", data, "--model", tiny_model, "--json", "--out", tmp_path / "report")
    report = json.loads(result.out)
    assert result.code == 1, "an empty answer is an error, and data.fail_on is error"
    assert "training would stop here: empty-response, bad-row (data.fail_on)" in result.err.replace(
        "bad-row, empty-response", "empty-response, bad-row"
    )
    assert report["rows"] == 23
    by_name = {check["name"]: check for check in report["checks"]}
    lines = {
        name: [example["line"] for example in check["examples"]] for name, check in by_name.items() if check["count"]
    }
    assert {name: lines[name] for name in ("empty-response", "exact-duplicate", "bad-row")} == {
        "empty-response": [22],
        "exact-duplicate": [21],
        "bad-row": [23],
    }
    for check in report["checks"]:
        assert {"name", "severity", "count", "share", "examples"} <= set(check)
        assert check["share"] == pytest.approx(check["count"] / 23)
        assert all({"file", "line"} <= set(example) for example in check["examples"])
    assert json.loads((tmp_path / "report" / "quality.json").read_text()) == report
    assert "<html" in (tmp_path / "report" / "quality.html").read_text()


def test_check_reports_findings_and_its_exit_code_says_whether_training_would_stop(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows_with_faults()[:21]])
    result = run("data", "check", data, "--model", tiny_model)
    assert result.code == 0, result.err
    assert "exact-duplicate" in result.out
    assert f"exact-duplicate: {data}:21  the same as {data}:5" in result.out
    assert "nothing found: " in result.out
    assert run("data", "check", data, "--model", tiny_model, "--fail_on", "warn").code == 1
    assert run("data", "check", data, "--model", tiny_model, "--fail_on", "never").code == 0


def test_a_prompt_on_both_sides_is_reported(run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient) -> None:
    asked = "please write one more short line about a red apple"
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": asked, "completion": f"line {n}"} for n in range(20)])
    told = "split: most rows have the same prompt, so it is on both sides"
    result = run("data", "check", data, "--model", tiny_model)
    assert (result.code, told in result.out) == (0, True)
    result = run("prepare", "--data", data, "--model", tiny_model, "--fix", "--out", tmp_path / "out")
    assert (result.code, told in result.err) == (0, True)
    assert "20 rows kept, 0 removed" in result.err
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{asked} {n}", "completion": "line"} for n in range(20)])
    assert told not in run("data", "check", data, "--model", tiny_model).out


def test_check_finds_rows_of_a_benchmark(run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient) -> None:
    rows = rows_with_faults()[:20]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    bench = [{"id": 1, "task": "something else altogether"}, {"task": f"ASK number 7?\n{rows[7]['output']}"}]
    benchmark = write_jsonl(tmp_path / "bench.jsonl", bench)
    result = run("data", "check", data, "--model", tiny_model, "--json", "--checks.benchmarks", f"[{benchmark}]")
    assert result.code == 1
    [contamination] = [check for check in json.loads(result.out)["checks"] if check["name"] == "contamination"]
    assert [example["line"] for example in contamination["examples"]] == [8]
    assert "bench.jsonl:2" in contamination["examples"][0]["message"]


def test_check_of_a_single_row(run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows_with_faults()[:1])
    result = run("data", "check", data, "--model", tiny_model, "--json")
    assert (result.code, json.loads(result.out)["rows"]) == (0, 1)


BAD = {
    "no such file": (["none.jsonl"], "the data file 'none.jsonl' does not exist"),
    "no format": (["unknown.jsonl"], "the rows have no known format; their columns are a, b"),
    "a typo": (["typo.jsonl"], "did you mean `instruction` where it says `instuction` (format alpaca)?"),
    "two formats": (["two.jsonl"], "the columns fit several formats: "),
    "a column": (["good.jsonl", "--data.columns", "instruction=frage"], "no row has a column 'frage'"),
    "a check": (["good.jsonl", "--checks.names", "exact-duplicat"], "did you mean exact-duplicate?"),
    "a key": (["good.jsonl", "--data.fromat", "x"], "did you mean data.format?"),
}


@pytest.mark.parametrize("command", ["show", "check"])
@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_reported(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient, case: str, command: str
) -> None:
    good = {"instruction": "i", "output": "o"}
    write_jsonl(tmp_path / "good.jsonl", [good])
    write_jsonl(tmp_path / "unknown.jsonl", [{"a": 1, "b": 2}])
    write_jsonl(tmp_path / "typo.jsonl", [{"instuction": "i", "output": "o"}])
    write_jsonl(tmp_path / "two.jsonl", [{"instruction": "i", "output": "o", "question": "q", "answer": "a"}])
    arguments, message = BAD[case]
    result = run("data", command, *arguments, "--model", tiny_model)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


# --- prepare


def test_prepare_is_a_run_with_the_report_and_writes_a_cleaned_copy(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows_with_faults())
    result = run("prepare", "--data", data, "--model", tiny_model, "--fix", "true", "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    outcome = json.loads(result.out)
    assert (outcome["kept_count"], outcome["removed_count"]) == (20, 3)
    stored = client.get_run(outcome["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["cfg.method"] == "prepare"
    assert stored.data.tags["mlflow_ft.data_fingerprint"] == outcome["fingerprint"]
    assert stored.data.params["data/check/empty-response"] == "1"
    assert stored.data.metrics["data/fixed/removed"] == 3
    names = {file.path for file in client.list_artifacts(outcome["run_id"], "data")}
    expected = (
        "mask.html",
        "mask.txt",
        "quality.html",
        "quality.json",
        "lineage.json",
        "rows.parquet",
        "left_out.jsonl",
    )
    assert names >= {f"data/{name}" for name in (*expected, "clean.jsonl", "removed.jsonl")}
    again = f"runs:/{outcome['run_id']}/data/clean.jsonl"
    assert run("data", "check", "--data", again, "--model", tiny_model).code == 0


def test_prepare_refuses_what_a_training_would_refuse(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows_with_faults()[:22])
    opened = client.create_run("0").info.run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", opened)
        result = run("prepare", "--data", data, "--model", tiny_model)
    assert result.code == 1
    assert "empty-response  1 row (4.5%)" in result.err
    assert "mlflow-ft prepare --fix" in result.err
    stored = client.get_run(opened)
    assert stored.info.status == "FAILED"
    assert client.list_artifacts(opened, "data"), "the report is logged anyway"


def test_training_refuses_rows_of_a_kind_that_its_method_does_not_learn_from(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    pairs = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    result = run("train", "lora", "--data", data, "--model", tiny_model)
    assert result.code == 2
    assert "lora learns from conversations or plain text; these rows (format preference) are preferences" in result.err
    assert run("data", "check", data, "--model", tiny_model).code == 0


# --- which models were trained on it


@pytest.mark.slow
def test_the_models_that_were_trained_on_a_file_are_found(
    run: Run, tmp_path: Path, tiny_model: Path, client: MlflowClient
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", make_rows(26))
    quick = ["--max_steps", 1, "--max_new_tokens", 4, "--evaluation.max_rows", 2, "--eval_steps", 1]
    quick += ["--package.round_trip", "false"]
    name = ["--registry.model_name", "found-again"]
    assert run("train", "lora", "--data", data, "--model", tiny_model, *quick, *name).code == 0
    part = tmp_path / "renamed.json"
    part.write_text(json.dumps([*make_rows(13)[:5], {"messages": [QUESTION, ANSWER]}], indent=1))
    versions = json.loads(run("data", "find-models", part, "--json").out)
    # other tests' models learned these rows, too
    versions_here = [row for row in versions if row["name"].startswith("found-again")]
    assert [(row["name"], row["version"]) for row in versions_here] == [("found-again", 1), ("found-again-adapter", 1)]
    assert versions_here[0]["aliases"] == ["candidate"]
    assert 0 < versions_here[0]["shared_rows"] <= 5
    assert versions_here[0]["rows_of_file"] == 6
    result = run("data", "find-models", part)
    assert "found-again version 1 @candidate: " in result.out
    other = write_jsonl(tmp_path / "other.jsonl", [{"messages": [QUESTION, ANSWER]}])
    result = run("data", "find-models", other)
    assert (result.code, result.out) == (0, "")
    assert "no registered version was trained on a row of" in result.err
    for registered in ("found-again", "found-again-adapter"):
        client.delete_registered_model(registered)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets that nobody here wrote are not on this machine")
@pytest.mark.parametrize(
    ("name", "format_", "rows"),
    [
        ("alpaca_en_demo", "alpaca", 999),
        ("dpo_en_demo", "preference", 300),
        ("kto_en_demo", "unpaired-preference", 300),
        ("glaive_toolcall_en_demo", "sharegpt", 300),
    ],
)
def test_public_data_sets_are_recognised_and_learned_right(
    run: Run, tiny_model: Path, client: MlflowClient, name: str, format_: str, rows: int
) -> None:
    file = SHARED / f"{name}.json"
    result = run("data", "show", "--data", file, "--model", tiny_model, "--json", "--max_length", 100_000)
    assert result.code == 0, result.err
    shown = as_rows(result)
    assert {row["format"] for row in shown} == {format_}
    assert len(shown) == rows
    assert [row["dropped"] for row in shown] == [None] * rows
    for row, source in zip(shown, json.loads(file.read_text()), strict=True):
        assert speeches(row) == answers(source), f"row {row['row']}"


def speeches(row: dict[str, Any]) -> list[str]:
    """What is learned, turn by turn, without the end of turn; of a call, its arguments in one form."""
    text = "".join(
        words if is_learned else "\0" for words, is_learned in zip(row["tokens"], row["supervised"], strict=True)
    )
    parts = [part for part in text.split("\0") if part]
    assert all(part.endswith("<|im_end|>") for part in parts)
    return [plain(part.removesuffix("<|im_end|>")) for part in parts]


def plain(text: str) -> str:
    text = text.strip().removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    try:
        call = json.loads(text)
    except ValueError:
        return text
    if isinstance(call, dict) and isinstance(call.get("arguments"), str):
        call["arguments"] = json.loads(call["arguments"])
    return json.dumps(call, sort_keys=True)


def answers(source: dict[str, Any]) -> list[str]:
    """The assistant's answers in a row of these files, read without our code."""
    if "output" in source:
        return [plain(source["output"])]
    if "chosen" in source:
        return [plain(source["chosen"]["value"])]
    if "label" in source:
        return [plain(source["messages"][-1]["content"])]
    spoken = [turn["value"] for turn in source["conversations"] if turn["from"] in ("gpt", "function_call")]
    return [plain(text) for text in spoken]
