"""Several processes give what one gives: the same rows, findings, template and dates, in the same order."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from mlflow_ft import Check, Checked, Finding, plugins
from mlflow_ft.builtin.checks import register_checks
from mlflow_ft.config.schema import ChecksSection, DataSection
from mlflow_ft.data import store
from mlflow_ft.data.pieces import Piece
from mlflow_ft.data.quality import Quality
from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.masking import Encoder
from mlflow_ft.errors import DataError
from mlflow_ft.preparing import batches, on_this_machine, one_pass
from mlflow_ft.preparing.batches import Sources
from mlflow_ft.preparing.on_this_machine import Helpers
from mlflow_ft.preparing.one_pass import OpenedSource, Tally
from mlflow_ft.progress import Bar, Progress
from mlflow_ft.registry import Registry
from mlflow_ft.testing import write_jsonl

CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "lamp", "arguments": {}}}]}
REFUSING = "{% if messages[0]['content'] == 'ask 12' %}{{ raise_exception('not twelve') }}{% endif %}"
"""A template that rejects some rows."""
CHECKS = [check for check in register_checks() if check.compare is None]
LIMITS = ChecksSection()


def row(number: int) -> dict[str, Any]:
    """Answers of many lengths, the same and similar ones, tool calls, and rows that cannot be proved or read."""
    user = {"role": "user", "content": f"ask {number % 40}"}
    answer = {"role": "assistant", "content": f"answer {number % 40} " * (number % 5 + 1)}
    if number % 7 == 4:
        answer["content"] = " ".join(f"word{place}" for place in range(60)) + f" {number}"
    others = {3: [user, CALL if number > 9 else answer], 6: "nobody"}
    return {"messages": others.get(number % 7, [user, answer])}


@dataclass
class Passed:
    """What a pass leaves."""

    tally: Tally
    table: Any
    report: Any
    encoder: Encoder


Pass = Callable[..., Passed]


@pytest.fixture
def passed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pass:
    """A pass over 60 rows in two files, with so many helpers, which begin after the first seven rows."""
    monkeypatch.setattr(store, "BATCH", 7)
    monkeypatch.setattr(on_this_machine, "ALONE", 1)
    monkeypatch.setattr(Helpers, "ready", property(lambda helpers: [one.result() for one in helpers._started]))
    rows = [row(number) for number in range(60)]
    files = [write_jsonl(tmp_path / "a.jsonl", rows[:25]), write_jsonl(tmp_path / "b.jsonl", rows[25:])]
    files[1].write_text(files[1].read_text().replace("\n", "\n\n"))  # blank lines are not rows

    def make(
        helpers: int, *, template: str = "", checks: Sequence[Check] = CHECKS, times: int = 1, tokenizer: Any = None
    ) -> Passed:
        encoder = Encoder(tokenizer or AutoTokenizer.from_pretrained(tiny_model), max_length=40)
        encoder.tokenizer.chat_template = REFUSING + template + str(encoder.tokenizer.chat_template)
        quality = Quality(checks, LIMITS)
        with Progress(quiet=True).bar("prepare") as bar:
            tally = prepare(files * times, encoder, quality, tmp_path / f"{helpers}.arrow", bar, checks, helpers)
        return Passed(tally, store.read(tmp_path / f"{helpers}.arrow"), quality.report(tally.rows).as_dict(), encoder)

    return make


def prepare(
    files: Sequence[Path],
    encoder: Encoder,
    quality: Quality,
    target: Path,
    bar: Bar,
    checks: Sequence[Check],
    helpers: int,
) -> Tally:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    settings = DataSection(path=",".join(map(str, files)), format="messages")
    opened = opened_of(files, settings, loaded)
    run = partial(on_this_machine.run, opened, settings, encoder=encoder, quality=quality, file=target, bar=bar)
    return run(checks=checks, limits=LIMITS, helpers=helpers)


def opened_of(files: Sequence[Path], settings: DataSection, loaded: Any) -> list[OpenedSource]:
    opener = partial(one_pass.open_sources, settings=settings, plugins=loaded, registry=Registry(loaded))
    return [opener({str(file): None})[0] for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("size", [600, 2**20], ids=["others read", "others get rows"])
def test_several_processes_give_what_one_gives(passed: Pass, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = passed(0)
    monkeypatch.setattr(on_this_machine, "BYTES", size)
    assert alone.tally.rows == 60
    left = {left.index for left in alone.tally.left_out}
    assert sorted(left | set(alone.table.column("index").to_pylist())) == list(range(60))
    assert sum(alone.tally.ends.values()) == alone.table.column("truncated").to_pylist().count(False)
    assert {left.sort for left in alone.tally.left_out} == {"convert", "prove"}
    found = {check["name"] for check in alone.report["checks"] if check["count"]}
    assert {"exact-duplicate", "near-duplicate", "over-max-length"} <= found
    monkeypatch.setattr(batches, "work", only_once(batches.work))
    helped = passed(2)
    assert helped.table.equals(alone.table)
    assert helped.tally == alone.tally
    assert helped.report == alone.report
    assert "<tool_call>" in helped.encoder.tokenizer.chat_template
    assert helped.encoder.tokenizer.chat_template == alone.encoder.tokenizer.chat_template


def only_once(work: Callable[..., Any]) -> Callable[..., Any]:
    """This process works on the first batch; the rest is for the others."""
    calls = iter([work])
    return lambda *given, **named: next(calls)(*given, **named)


def test_this_process_does_not_read_what_others_can(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only counts the rows of a piece, so that the next one knows its place."""
    monkeypatch.setattr(on_this_machine, "BYTES", 600)
    read, places = Sources.read, list[int]()

    def noted(sources: Sources, piece: Piece) -> Iterator[Any]:
        places.append(piece.index)
        return read(sources, piece)

    monkeypatch.setattr(Sources, "read", noted)
    assert passed(1).tally.rows == 60
    assert places == [0]


@pytest.mark.slow
def test_other_processes_are_told_the_same_time(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    later = "{% if messages[0]['content'] == 'ask 30' %}{{ strftime_now('%Y') }}{% endif %}"
    dated = partial(passed, template="{{ strftime_now('%d %b %Y') }}" + later)
    with clock.held(datetime.fromisoformat("2026-05-06T23:59")):
        alone = dated(0)
        monkeypatch.setattr(batches, "work", only_once(batches.work))
        helped = dated(2)
    assert helped.table.equals(alone.table)
    assert alone.encoder.dates == helped.encoder.dates == {"%d %b %Y": "06 May 2026", "%Y": "2026"}
    monkeypatch.undo()
    with clock.held(datetime.fromisoformat("2026-05-07")):
        assert not dated(0).table.equals(alone.table)


@pytest.fixture
def no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_this_machine, "Helpers", lambda *_: pytest.fail("others were asked"))


@pytest.mark.usefixtures("no_helpers")
def test_few_rows_need_no_other_process(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_this_machine, "ALONE", 60)
    assert passed(2).tally.rows == 60


def test_many_bytes_need_others_at_once(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_this_machine, "LARGE", 1_000)
    monkeypatch.setattr(on_this_machine, "ALONE", 60)
    monkeypatch.setattr(batches, "work", lambda *_, **__: pytest.fail("this process did not wait for them"))
    assert passed(1).tally.rows == 60


def test_this_process_does_everything_while_the_others_start(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Helpers, "ready", False)
    monkeypatch.setattr(Helpers, "work", lambda *_: pytest.fail("none of them was ready"))
    assert passed(1).table.equals(passed(0).table)


class Alone:
    """A collector without `join`."""

    def __init__(self, settings: ChecksSection) -> None:
        self.seen: list[int] = []

    def see(self, row: Checked) -> None:
        self.seen.append(row.index)

    def found(self) -> Finding:
        return Finding(rows=tuple(self.seen))


@pytest.mark.usefixtures("no_helpers")
def test_a_check_that_cannot_be_joined_sees_every_row_in_this_process(passed: Pass) -> None:
    check = Check(name="alone", summary="sees rows", severity="info", kinds=("conversation",), collect=Alone)
    result = passed(2, checks=[*CHECKS, check])
    [finding] = [found for found in result.report["checks"] if found["name"] == "alone"]
    readable = 60 - len([left for left in result.tally.left_out if left.sort == "convert"])
    assert finding["count"] == readable


def test_the_next_batch_is_read_while_the_others_work_and_not_all_at_once(
    passed: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are an iterator over a source of any size: at most a few batches wait."""
    ahead, read, write = [0], Sources.read, batches._write

    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        for batch in read(*given, **named):
            ahead.append(ahead[-1] + 1)
            yield batch

    def written(*given: Any) -> None:
        ahead.append(ahead[-1] - 1)
        write(*given)

    monkeypatch.setattr(Sources, "read", counted)
    monkeypatch.setattr(batches, "_write", written)
    passed(1, times=3)
    assert max(ahead) <= 4
    assert ahead[-1] == 0


def test_a_killed_process_is_an_error_that_says_so(passed: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_this_machine, "_work", killed)
    with pytest.raises(DataError, match="a process that prepares rows was killed"):
        passed(1)


def killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = """
import os, signal, time
from mlflow_ft.preparing.on_this_machine import Helpers
helpers = Helpers(None, None, 1)
print(helpers._executor.submit(os.getpid).result(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_other_processes_end_with_one_that_is_killed() -> None:
    """They waited for ever, with 300 MiB each, to hand over their results."""
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(int(killed.stdout))
        until = time.monotonic() + 30
        while other.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.1)


OWN_CODE = """
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    def apply_chat_template(self, conversation, **options):
        return super().apply_chat_template(conversation, **options).replace("answer 7", "seven")
"""


def test_a_tokenizer_with_code_of_its_own_works_in_other_processes(
    passed: Pass, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They import the code from where transformers has put it (`model.trust_remote_code`)."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(OWN_CODE)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert type(tokenizer).__module__.startswith("transformers_modules")
    alone = passed(0, tokenizer=tokenizer)
    assert alone.tally.good > 20
    monkeypatch.setattr(batches, "work", only_once(batches.work))
    assert passed(1, tokenizer=tokenizer).table.equals(alone.table)


def test_another_process_needs_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    """Its import takes longer than a thousand rows."""
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model), max_length=40)
    (tmp_path / "recipe").write_bytes(pickle.dumps(batches.recipe(DataSection(), encoder, CHECKS, LIMITS)))
    code = f"""
import pickle, sys
from mlflow_ft.preparing import batches
from mlflow_ft.rows import Example

turns = ({{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "b"}})
encoder = batches.encoder_of(pickle.load(open({str(tmp_path / "recipe")!r}, "rb")))
[row] = encoder.encode([Example(messages=turns)])
print(row.supervised, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2", "False"]
