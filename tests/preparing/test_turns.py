"""Rows that are divided by turns, as a training gets them: sides, checks, fingerprint, what is shown, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mlflow_ft import Score, hashes
from mlflow_ft.cli.asked import asked
from mlflow_ft.config import Config
from mlflow_ft.engine import hub
from mlflow_ft.engine.tokens import clock, tokenizers
from mlflow_ft.errors import DataError
from mlflow_ft.preparing import dataset, fix, on_this_machine, show
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import evaluate
from mlflow_ft.testing import CHATML, make_tiny_tokenizer, write_jsonl
from tests.engine.templates.qwen import QWEN3
from tests.preparing.test_dataset import LOADED

Make = Callable[..., CheckedData]
THINKS = "<think>\nmuse {0}\n</think>\n\nsay {0}"


GREETING = "hello, I have a question about the red lamp beside the old door in my room"


def talks(count: int, rounds: int = 3, answer: str = THINKS) -> list[dict[str, Any]]:
    """Conversations that all begin with the same words, as many do."""
    return [
        {
            "messages": [
                turn
                for number in range(rounds)
                for turn in (
                    {"role": "user", "content": f"ask {row} {number}" if number else GREETING},
                    {"role": "assistant", "content": answer.format(f"{row} {number}")},
                )
            ]
        }
        for row in range(count)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the tokenizer of a model that drops the thoughts of earlier turns, which is all that is read."""
    make_tiny_tokenizer(chat_template=QWEN3).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "model"


@pytest.fixture
def make(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)

    def call(data: Any, *, now: str = "2026-11-28", strict: bool = True, **given: Any) -> CheckedData:
        path = write_jsonl(tmp_path / "rows.jsonl", data)
        settings = {"data": path, "model": model, "max_length": 4000, **given}
        config = asked([f"--{key}={value}" for key, value in settings.items()], LOADED, method="prepare")
        progress = Progress(quiet=True)
        tokenizer = tokenizers.load(config, hub.find(config.model, progress, weights=False))
        with clock.held(datetime.fromisoformat(now)):
            return dataset.prepare(
                config, tokenizer, plugins=LOADED, registry=Registry(LOADED), progress=progress, strict=strict
            )

    return call


def check(checked: CheckedData, name: str) -> Any:
    return next(result for result in checked.report.checks if result.name == name)


def test_thoughts_that_are_not_written_are_a_finding_with_its_remedies(make: Make) -> None:
    data = [*talks(6), *talks(6, answer="plainly {0}")]
    unwritten = check(make(data), "unwritten-thoughts")
    assert (unwritten.severity, unwritten.count, unwritten.share, unwritten.details) == ("warn", 6, 0.5, {"turns": 12})
    assert unwritten.summary == "the chat template leaves out the thoughts of 12 turns; they are not learned"
    assert unwritten.examples[0]["line"] == 1
    assert unwritten.examples[0]["message"] == "the thoughts of 2 turns are left out"
    for remedy in ("--data.turns each", "--data.turns last", "--data.chat_template"):
        assert remedy in unwritten.remedy
    for how in ("each", "last"):
        assert check(make(data, turns=how), "unwritten-thoughts").count == 0
    assert check(make(data, chat_template=CHATML), "unwritten-thoughts").count == 0


def test_each_turn_is_learned_behind_the_history_that_a_server_writes(make: Make) -> None:
    checked = make(talks(8), turns="each")
    data = checked.data
    assert (checked.train.stored.read, checked.train.stored.count) == (8, 24)
    assert data.train.counts["rows"] + data.eval.counts["rows"] == 24
    for split in (data.train, data.eval):
        for example, encoded in zip(split.examples, split.encoded, strict=True):
            text, learned = (
                data.tokenizer.decode([token for token in ids if token != -100])
                for ids in (encoded.input_ids, encoded.labels)
            )
            said = example.messages[-1]["content"]
            assert said in learned
            assert text.count("muse") == learned.count("muse") == 1, "the history is written without its thoughts"
            assert encoded.way == "prefix differences"


def test_a_conversation_stays_on_one_side_and_is_looked_at_once(make: Make) -> None:
    checked = make(talks(12), turns="each")
    sides = [{example.messages[2]["content"] for example in side.examples if len(example.messages) > 3}
             for side in (checked.data.train, checked.data.eval)]  # fmt: skip
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12
    assert len(checked.data.eval.examples) % 3 == 0
    for name in ("contamination", "exact-duplicate", "near-duplicate", "conflicting-answers"):
        assert check(checked, name).count == check(make(talks(12)), name).count, name
    assert check(checked, "contamination").count == 0, "that all begin alike is nothing that gives an answer away"
    assert checked.report.rows == 12


def test_fingerprint_digest_hashes_and_key_know_the_turns(make: Make, tmp_path: Path) -> None:
    ways = {how: make(talks(8), turns=how) for how in ("all", "last", "each")}
    assert len({checked.data.fingerprint for checked in ways.values()}) == 3
    assert len({checked.data.train.digest for checked in ways.values()}) == 3
    assert len({str(checked.train.stored.parts["settings"]) for checked in ways.values()}) == 3
    assert "turns" not in ways["all"].train.stored.parts["settings"], "fingerprints are those that they were"
    for how, checked in ways.items():
        sides = {name: (side.stored.table, side.stored.files, side.indices) for name, side in checked.sides.items()}
        kept = parquet.read_table(hashes.write_rows(sides, tmp_path)).to_pylist()
        assert {row["turn"] for row in kept} == {"all": {0}, "last": {6}, "each": {2, 4, 6}}[how]
        assert len({row["hash"] for row in kept}) == 8
        assert {(row["line"], row["turn"]) for row in kept if row["side"] == "eval"}


def test_what_is_left_out_is_told_with_its_turn(make: Make) -> None:
    long = {"messages": [*talks(1)[0]["messages"], {"role": "user", "content": "far " * 300},
                         {"role": "assistant", "content": "say"}]}  # fmt: skip
    checked = make([*talks(6), long], turns="each", max_length=300)
    [cut] = checked.left_out
    assert (cut.line, cut.sort) == (7, "cut")
    assert cut.reason == "turn 8: cut at data.max_length 300 before anything is learned"
    assert checked.train.stored.table.num_rows == 6 * 3 + 3
    assert check(checked, "nothing-learned").count == 1
    broken = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud800"}]}
    checked = make([*talks(6), broken], turns="each", strict=False)
    assert [row.line for row in checked.train.stored.bad] == [7]
    cleaned = fix.write(checked, Path("out"))
    assert (cleaned.kept_count, cleaned.removed_count) == (6, 1)


def test_rows_that_are_no_conversations_are_refused_before_they_are_prepared(make: Make) -> None:
    pair = [{"prompt": f"{number}", "chosen": "b", "rejected": "c"} for number in range(9)]
    with pytest.raises(DataError, match=r"data\.turns each chooses turns of conversations"):
        make(pair, turns="each")
    assert make(pair).data.kind == "preference"


def test_what_is_shown_names_the_turn(make: Make, model: Path) -> None:
    path = write_jsonl(Path("rows.jsonl"), talks(2))
    config = asked(
        [f"--data={path}", f"--model={model}", "--turns=each", "--max_length=4000"], LOADED, method="prepare"
    )
    tokenizer = tokenizers.load(config, hub.find(config.model, Progress(quiet=True), weights=False))
    shown = list(show.every_row(config, tokenizer, plugins=LOADED, registry=Registry(LOADED)))
    assert [(row.row, row.turn) for row in shown] == [(1, 2), (1, 4), (1, 6), (2, 2), (2, 4), (2, 6)]
    assert shown[1].place.endswith("rows.jsonl:1 turn 4")
    assert json.loads(json.dumps(shown[1].as_dict()))["turn"] == 4
    assert [len(row.messages) for row in shown[:3]] == [2, 4, 6]
    checked = make(talks(8), turns="each")
    kept = show.first_rows(checked, config)
    assert f"rows.jsonl:{kept[0].line} turn {kept[0].turn}: " in show.as_text(kept)
    tokens = [sum(make(talks(8), turns=how).train.stored.table["tokens"].to_pylist()) for how in ("each", "last")]
    assert show.cost(checked.train.stored) == pytest.approx(tokens[0] / tokens[1])
    assert tokens[0] > 1.8 * tokens[1], "1 + 2 + 3 rounds where 3 were read"
    whole = make(talks(8))
    [first, *_] = show.first_rows(whole, config)
    assert (first.turn, list(first.unwritten)) == (0, [2, 4])
    assert first.as_dict()["unwritten_thoughts"] == [2, 4]


# --- the clock


DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML


def test_prepared_rows_are_found_again_on_the_same_day_and_not_on_another(make: Make) -> None:
    plain = talks(8, answer="say {0}")
    versions = [
        make(plain, chat_template=DATED, now=now) for now in ("2026-11-27T23:59", "2026-11-28", "2026-11-28T18:00")
    ]
    texts = [version.data.tokenizer.decode(version.data.train.encoded[0].input_ids)[:11] for version in versions]
    assert texts == ["27 Nov 2026", "28 Nov 2026", "28 Nov 2026"]
    assert [version.data.clock for version in versions] == [{"%d %b %Y": text} for text in texts]
    assert versions[0].data.fingerprint != versions[1].data.fingerprint == versions[2].data.fingerprint
    assert versions[0].data.train.digest != versions[1].data.train.digest == versions[2].data.train.digest
    assert versions[0].train.stored.parts["clock"] == {"%d %b %Y": "27 Nov 2026"}


@pytest.mark.parametrize(
    ("wanted", "again"),
    [("%Y", "2026-01-01"), ("%B", "2025-11-03"), ("%H:%M", "2020-02-02T09:12"), ("%d", "2026-10-28T23:00")],
)
def test_rows_are_made_anew_only_where_the_template_is_told_something_else(
    make: Make, monkeypatch: pytest.MonkeyPatch, wanted: str, again: str
) -> None:
    template = f"{{{{ strftime_now('{wanted}') }}}}" + CHATML
    make(talks(8), chat_template=template, now="2026-11-28T09:12:31")
    monkeypatch.setattr(on_this_machine, "run", lambda *_, **__: pytest.fail("they were prepared before"))
    make(talks(8), chat_template=template, now=again)
    monkeypatch.undo()
    assert make(talks(8), chat_template=template, now="2027-12-29T10:13:32").data.clock != {}


def test_a_template_that_asks_no_time_has_the_same_rows_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(talks(8), now="2026-11-27")
    monkeypatch.setattr(on_this_machine, "run", lambda *_, **__: pytest.fail("they were prepared before"))
    again = make(talks(8), now="2031-01-01")
    assert (first.data.clock, "clock" in first.train.stored.parts) == ({}, False)
    assert first.data.fingerprint == again.data.fingerprint


def test_two_models_are_compared_by_one_value_a_conversation(make: Make, model: Path) -> None:
    data = make(talks(12), turns="each").data
    count = len(data.eval.examples)
    config = asked([f"--model={model}", "--turns=each", "--evaluation.max_rows=4"], LOADED, method="prepare")
    values = tuple(float(number) for number in range(count))

    def grouped(rows: Sequence[float | None], of: Config = config) -> tuple[float | None, ...]:
        return tuple(evaluate.by_conversation(Score.mean("x", rows), data, of))

    assert grouped(values) == tuple(number + 1.0 for number in range(0, count, 3))
    assert grouped([None, 2.0, 4.0, None]) == (3.0, None), "those that were answered"
    assert grouped([1.0, 2.0]) == (1.0, 2.0), "an evaluator's own rows"
    whole = asked([f"--model={model}"], LOADED, method="prepare")
    assert grouped(values, whole) == values
