"""The data before training: both sides of the split, what is left out, what the checks found, the fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hub
from mlflow_ft.engine.tokens import tokenizers
from mlflow_ft.errors import DataError
from mlflow_ft.preparing import dataset, fix, show
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.testing import CHATML, write_jsonl
from mlflow_ft.values import CheckResult

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
Make = Callable[..., CheckedData]


def row(question: str, answer: str = "say it", **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    words = [
        "red",
        "green",
        "blue",
        "round",
        "flat",
        "heavy",
        "small",
        "apple",
        "stone",
        "river",
        "lamp",
        "door",
        "song",
    ]
    return [row(f"ask {words[n % 13]} {n} {words[n * 5 % 13]}", f"the answer is {n}", **more) for n in range(count)]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(data, strict=..., **settings)`: the data as a training would get it."""
    monkeypatch.chdir(tmp_path)

    def call(data: Any, *, strict: bool = True, **settings: Any) -> CheckedData:
        path = write_jsonl(tmp_path / "rows.jsonl", data) if isinstance(data, list) else data
        pairs = [f"--{key}={value}" for key, value in {"data": path, "model": tiny_model, **settings}.items()]
        config = asked(pairs, LOADED, method="prepare")
        progress = Progress(quiet=True)
        tokenizer = tokenizers.load(config, hub.find(config.model, progress, weights=False))
        return dataset.prepare(
            config, tokenizer, plugins=LOADED, registry=Registry(LOADED), progress=progress, strict=strict
        )

    return call


def questions(checked: CheckedData, side: str) -> set[str]:
    split = checked.data.train if side == "train" else checked.data.eval
    return {example.messages[0]["content"] for example in split.examples}


def test_both_sides_together_are_all_rows(make: Make) -> None:
    checked = make(rows(40))
    data = checked.data
    assert (data.format, data.kind) == ("alpaca", "conversation")
    assert (data.train.counts["rows"], data.eval.counts["rows"]) == (36, 4)
    assert len(data.train.examples) == len(data.train.encoded) == len(data.train.rows) == 36
    assert not questions(checked, "train") & questions(checked, "eval")
    place = data.eval.rows[0]
    assert place.file.endswith("rows.jsonl")
    assert rows(40)[place.line - 1]["instruction"] in questions(checked, "eval")
    assert data.train.columns == ("instruction", "output")
    tokens = [len(encoded.input_ids) for encoded in data.train.encoded]
    assert data.train.counts["tokens"] == sum(tokens)
    assert data.train.counts["supervised_tokens"] == sum(encoded.supervised for encoded in data.train.encoded)
    assert data.stop_token_ids == (data.tokenizer.eos_token_id,)


def test_the_same_rows_in_another_order_are_held_out(make: Make) -> None:
    assert questions(make(rows(40)), "eval") == questions(make(rows(40)[::-1]), "eval")


def test_no_prompt_stands_on_both_sides(make: Make) -> None:
    checked = make([row(f"ask {n // 4}", f"answer {n}") for n in range(40)], fail_on="never")
    assert not questions(checked, "train") & questions(checked, "eval")
    assert checked.data.eval.counts["rows"] == 4


QUESTIONS = [f"Please write one more short line about a red {word} in the garden" for word in "abcdefghij"]


def systems(question: str, answer: str) -> Iterator[dict[str, Any]]:
    for number, system in enumerate(("You are A.", "You are B.")):
        yield {"prompt": question, "completion": f"{answer} {number}", "system": system}


@pytest.mark.parametrize(
    "pair",
    [
        lambda question, answer: [row(question, answer), row(f"{question}?", f"{answer} again")],
        lambda question, answer: [row(question, answer), row(f"{question.upper()}  ", f"{answer} again")],
        lambda question, answer: list(systems(question, answer)),
        lambda question, answer: [
            {"prompt": f"{question}{end}", "chosen": f"{answer}{end}", "rejected": "no"} for end in ("", "?")
        ],
        lambda question, answer: [row(f"{answer}{end}", answer, user=end) for end in ("", "!")],
    ],
    ids=["punctuation", "case", "system", "preference", "short"],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_split_passes_the_check_of_its_own_prompts(make: Make, pair: Callable[..., list[Any]], seed: int) -> None:
    data = [values for number, question in enumerate(QUESTIONS) for values in pair(question, f"line {number}")]
    checked = make(data, test_size=0.3, fail_on="never", **{"run.seed": seed})
    assert (checked.data.train.counts["rows"], checked.data.eval.counts["rows"]) == (14, 6)
    assert found(checked, "contamination").count == 0
    assert not checked.eval.by_text


def found(checked: CheckedData, name: str) -> CheckResult:
    return next(check for check in checked.report.checks if check.name == name)


def test_one_prompt_for_all_rows_is_split_by_the_answers(make: Make) -> None:
    checked = make([row("ask", f"answer {n}") for n in range(20)], fail_on="never")
    assert (checked.data.train.counts["rows"], checked.data.eval.counts["rows"]) == (18, 2)
    assert checked.eval.by_text


def test_a_prompt_of_most_rows_is_no_contamination(make: Make) -> None:
    prompt = " ".join(QUESTIONS)
    answers = [" ".join(f"{word}{n}" for word in "abcdefghijklmnopqrst") for n in range(20)]
    checked = make([row(prompt if n < 15 else f"{prompt} and {n}", answer) for n, answer in enumerate(answers)])
    assert checked.eval.by_text
    assert (checked.data.train.counts["rows"], checked.data.eval.counts["rows"]) == (18, 2)
    assert [found(checked, name).count for name in ("contamination", "contamination-overlap")] == [0, 0]
    assert fix.reasons(checked) == {}


def test_one_prompt_and_one_answer_stay_on_one_side_or_are_contamination(make: Make) -> None:
    twice = [row(QUESTIONS[0], f"line {n // 2}{'.' * (n % 2)}", id=n) for n in range(20)]
    checked = make(twice, test_size=0.3)
    assert checked.eval.by_text
    assert found(checked, "contamination").count == 0
    answers = [{example.answer for example in side.examples} for side in (checked.data.train, checked.data.eval)]
    assert not {answer.rstrip(".") for answer in answers[0]} & {answer.rstrip(".") for answer in answers[1]}
    checked = make([row(QUESTIONS[0], "line", id=n) for n in range(20)])
    assert found(checked, "contamination").count == 18


def test_no_group_stands_on_both_sides(make: Make) -> None:
    data = [values | {"user": f"user {n % 8}"} for n, values in enumerate(rows(40))]
    checked = make(data, split_by="user", test_size=10)
    sides = [
        {n % 8 for n, values in enumerate(rows(40)) if values["instruction"] in questions(checked, side)}
        for side in ("train", "eval")
    ]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(8))
    assert len(sides[1]) == 2


def test_a_group_column_that_no_row_has_is_told(make: Make) -> None:
    with pytest.raises(DataError, match=r"data\.split_by: no row has a column 'usr'"):
        make(rows(8), split_by="usr")


def test_held_out_rows_from_a_file_of_their_own(make: Make, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "p", "completion": "c"}] * 2)
    checked = make(rows(8), eval_path=held)
    assert (checked.data.train.counts["rows"], checked.data.eval.counts["rows"]) == (8, 2)
    assert checked.data.eval.source == str(held)
    assert checked.train.stored is not checked.eval.stored


def test_a_split_that_chooses_nothing_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match=r"data\.split 'nonsense' chooses nothing"):
        make(rows(20), **{"data.split": "nonsense"})


def test_sources_are_mixed_in_their_weights_and_may_be_of_several_formats(make: Make, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows(20))
    write_jsonl(tmp_path / "b.jsonl", [{"question": f"q {n}", "answer": f"a {n}"} for n in range(50)])
    checked = make("{a.jsonl: 1, b.jsonl: 1.5}")
    assert checked.taken == {"a.jsonl": (20, 20), "b.jsonl": (30, 50)}
    assert checked.data.train.counts["rows"] + checked.data.eval.counts["rows"] == 50
    assert checked.data.format == "alpaca+question-answer"
    assert make("[a.jsonl, b.jsonl]").data.train.counts["rows"] == 63


def test_sources_of_two_kinds_are_not_mixed(make: Make, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows(4))
    write_jsonl(tmp_path / "b.jsonl", [{"text": "words"}] * 4)
    with pytest.raises(DataError, match=r"different kinds: 'a\.jsonl' \(conversation\) and 'b\.jsonl' \(text\)"):
        make("[a.jsonl, b.jsonl]")


# --- rows that are left out


BAD: list[Any] = [*rows(6), {"instruction": "no output"}, row("bad", 7), *rows(2)]  # type: ignore[arg-type]  # on purpose


def test_bad_rows_stop_with_their_places_or_are_dropped_and_counted(make: Make) -> None:
    with pytest.raises(DataError, match="2 of 10 rows are not in the format alpaca") as error:
        make(BAD)
    assert [problem.place.rpartition("/")[2] for problem in error.value.problems] == ["rows.jsonl:7", "rows.jsonl:8"]
    assert "--data.on_bad_row drop" in error.value.hint
    checked = make(BAD, on_bad_row="drop")
    assert [(left_out.line, left_out.sort) for left_out in checked.left_out] == [(7, "convert"), (8, "convert")]
    assert checked.data.train.counts["dropped"] == 2
    assert checked.data.train.counts["rows"] + checked.data.eval.counts["rows"] == 8


def test_without_strictness_bad_rows_are_a_finding(make: Make) -> None:
    checked = make(BAD, strict=False)
    bad = next(check for check in checked.report.checks if check.name == "bad-row")
    assert (bad.severity, bad.count, bad.share) == ("error", 2, 0.2)
    assert [example["line"] for example in bad.examples] == [7, 8]


def test_a_row_that_cannot_be_read_does_not_hide_the_others(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    lines = [json.dumps(values) for values in rows(8)]
    file.write_text("\n".join([*lines[:4], '{"instruction": ', *lines[4:]]) + "\n")
    with pytest.raises(DataError, match="1 of 9 rows cannot be read"):
        make(file)
    checked = make(file, on_bad_row="drop")
    assert checked.data.train.counts["rows"] + checked.data.eval.counts["rows"] == 8


def test_a_mask_that_cannot_be_proved_is_told_with_the_row_as_it_is_written(make: Make) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(DataError, match="the loss mask of 8 of 8 rows cannot be proved") as error:
        make(rows(8), **{"data.chat_template": template})
    assert "rows.jsonl:1 as the template renders it:\n    user: ask red 0 red\n    assistant: " in error.value.hint
    assert "--data.chat_template" in error.value.hint


def test_a_source_without_one_good_row_is_not_read_to_its_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_ft.preparing.one_pass.HOPELESS", 10)
    with pytest.raises(DataError, match="10 of 10 rows are not in the format alpaca"):
        make([{"instruction": "no output"}] * 50, format="alpaca")


def test_rows_that_are_cut_before_the_answer_are_dropped_and_counted(make: Make) -> None:
    long = row("word " * 60)
    checked = make([*rows(10), long], max_length=40)
    assert [(left_out.line, left_out.sort) for left_out in checked.left_out] == [(11, "cut")]
    assert "cut at data.max_length 40 before anything is learned" in checked.left_out[0].reason
    finding = next(check for check in checked.report.checks if check.name == "nothing-learned")
    assert (finding.count, finding.severity) == (1, "warn")
    with pytest.raises(DataError, match=r"all 4 rows of .* have nothing to learn") as error:
        make([long] * 4, max_length=40)
    assert "raise data.max_length (it is 40)" in error.value.hint


def test_a_row_of_which_nothing_is_to_be_learned_is_dropped(make: Make) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": False}]
    data = [
        {"messages": turns},
        *({"messages": [turns[0], {"role": "assistant", "content": f"{n}"}]} for n in range(8)),
    ]
    checked = make(data, fail_on="never")
    assert [left_out.reason for left_out in checked.left_out] == ["nothing to learn: no assistant turn is learned"]


# --- the fingerprint


def test_the_fingerprint_is_the_same_on_another_machine(make: Make, tiny_model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, elsewhere / "model")
    checked = make(rows(12))
    other = make(write_jsonl(elsewhere / "renamed.jsonl", rows(12)), model=elsewhere / "model")
    assert checked.data.fingerprint == other.data.fingerprint
    assert checked.data.train.digest == other.data.train.digest


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 100},
        {"data.system": "Be brief."},
        {"test_size": 0.3},
        {"seed": 7},
        {"data.chat_template": CHATML.replace("<|im_end|>\n", "<|im_end|>")},
        {"on_bad_row": "drop"},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_whatever_changes_the_rows(make: Make, settings: dict[str, Any]) -> None:
    assert make(rows(12), **settings).data.fingerprint != make(rows(12)).data.fingerprint


def test_the_fingerprint_changes_with_the_bytes(make: Make) -> None:
    checked = make(rows(12)).data
    other = make([*rows(12)[:-1], row("ask other", "another answer")]).data
    assert checked.fingerprint != other.fingerprint


def test_the_same_data_is_prepared_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = make(rows(12))
    monkeypatch.setattr("mlflow_ft.preparing.on_this_machine.run", lambda *_, **__: pytest.fail("prepared again"))
    other = make(rows(12))
    assert list(checked.data.train.encoded) == list(other.data.train.encoded)
    assert checked.report.as_dict() == other.report.as_dict()
    assert checked.data.fingerprint == other.data.fingerprint


# --- tools


CALL = {
    "conversations": [
        {"from": "human", "value": "light"},
        {"from": "function_call", "value": '{"name": "lamp", "arguments": {"on": true}}'},
        {"from": "observation", "value": "lit"},
        {"from": "gpt", "value": "done"},
    ],
    "tools": '[{"name": "lamp", "description": "a lamp", "parameters": {}}]',
}


def test_a_template_without_tools_is_taught_them_and_that_is_what_is_saved(make: Make, tmp_path: Path) -> None:
    data = [
        CALL,
        *(
            {"conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": f"ok {n}"}]}
            for n in range(8)
        ),
    ]
    checked = make(data, max_length=2000)
    assert checked.taught_tools
    again = make(data, max_length=2000)  # from the cache: with the same template
    for version in (checked, again):
        saved = tmp_path / "saved"
        version.data.tokenizer.save_pretrained(saved)
        assert "<tool_call>" in (saved / "chat_template.jinja").read_text()
    shown = [
        shown_row
        for shown_row in show.first_rows(checked, asked(["--max_length=2000"], LOADED, method="prepare"))
        if "lamp" in str(shown_row.messages)
    ]
    texts = [
        text for shown_row in shown for learned, text in show.runs(shown_row.tokens, shown_row.supervised) if learned
    ]
    if shown:  # it may be among the rows that are held out
        assert texts[0] == '<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call><|im_end|>'


# --- mending


def test_a_cleaned_copy_lacks_what_is_safe_to_remove_and_says_why(make: Make, tmp_path: Path) -> None:
    data = [*rows(20), row("empty", " "), rows(20)[3], {"instruction": "no output"}]
    checked = make(data, strict=False)
    cleaned = fix.write(checked, tmp_path / "out")
    assert [file.name for file in cleaned.files] == ["clean.jsonl"]
    kept = [json.loads(line) for line in cleaned.files[0].read_text().splitlines()]
    assert kept == rows(20)
    removed = [json.loads(line) for line in cleaned.removed.read_text().splitlines()]
    assert [(removed_row["line"], removed_row["reasons"]) for removed_row in removed] == [
        (21, ["empty-response"]),
        (22, ["exact-duplicate"]),
        (23, ["column `output` is missing"]),
    ]
    assert (cleaned.kept_count, cleaned.removed_count) == (20, 3)
    again = make(cleaned.files[0])
    assert not again.report.worst("warn")


def test_rows_on_one_line_of_a_file_are_told_apart(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps([*rows(10), rows(10)[2], *rows(12)[10:]]))
    cleaned = fix.write(make(file, strict=False), tmp_path / "out")
    assert [json.loads(line) for line in cleaned.files[0].read_text().splitlines()] == rows(12)
