from __future__ import annotations

import io

import pytest

from mlflow_ft import progress as module
from mlflow_ft.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_with_brackets_is_printed_as_it_is() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.say("[bold]rows[/] of [/x]")
    progress.warn("[red]no[/nothing]")
    progress.table("Scores", ["score", "base"], [["[bold]loss[/y]", "1.5"]])
    progress.facts({"run": "[1]", "files": "/tmp"})
    told = stream.getvalue()
    for text in ("[bold]rows[/] of [/x]", "warning: [red]no[/nothing]", "[bold]loss[/y]", "  run    [1]"):
        assert text in told


def test_a_place_in_a_file_is_no_emoji() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.say("rows.jsonl:100: has no answer")
    progress.table("Rows", ["place", "what"], [["rows.jsonl:100:", ":smile:"]])
    assert stream.getvalue().count("rows.jsonl:100:") == 2
    assert ":smile:" in stream.getvalue()


def test_an_id_in_a_table_can_be_copied() -> None:
    stream = io.StringIO()
    row = ["82795ad866cc4b09be651ded72a533e9", *["a text of many words, which needs several lines"] * 4]
    Progress(stream=stream).table("Runs", list("abcde"), [row], text=range(5), whole=(0,))
    assert row[0] in stream.getvalue()
    assert row[1] not in stream.getvalue()


def test_a_long_line_is_not_broken() -> None:
    stream = io.StringIO()
    Progress(stream=stream).say("x " * 300 + "end")
    assert len(stream.getvalue().splitlines()) == 1


def test_without_a_terminal_a_bar_is_a_line_in_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(stream=stream).bar("train", total=40, unit="steps") as bar:
        for _ in range(40):
            now[0] += 1
            bar.advance(1, note="loss 1.5")
    assert stream.getvalue().splitlines() == [
        "train ...",
        *(f"train: {done}/40 steps loss 1.5, {40 - done} s left" for done in range(5, 40, 5)),
        "train: 40/40 steps loss 1.5, 40 s so far",
        "train: done in 40 s",
    ]


def test_quiet_tells_nothing() -> None:
    stream = Terminal()
    progress = Progress(stream=stream, quiet=True)
    with progress.bar("train", total=2) as bar:
        bar.advance()
    progress.say("x")
    progress.warn("x")
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_shows_steps_and_note() -> None:
    stream = Terminal()
    with Progress(stream=stream).bar("train", total=2, unit="steps") as bar:
        bar.advance(1, note="loss 1.5")
        bar.advance()
    told = stream.getvalue()
    assert "2/2" in told
    assert "loss 1.5" in told


def test_a_bar_shows_count_time_and_note_on_a_narrow_terminal() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.console.width = 80
    with progress.bar("answers of tuned", total=1200, unit="steps") as bar:
        bar.advance(1200, note="loss 0.123")
    last = next(line for line in reversed(stream.getvalue().splitlines()) if "answers" in line)
    assert "1200/1200 steps" in last
    assert "0:00:00" in last
    assert "loss 0.123" in last


def test_marked_runs_are_in_brackets_where_there_are_no_colours() -> None:
    stream = io.StringIO()
    Progress(stream=stream).marked("a row", [(False, "read [x] "), (True, "learned"), (False, " read")])
    assert stream.getvalue().splitlines() == ["a row", "read [x] [[learned]] read"]


def test_a_long_marked_text_is_cut() -> None:
    stream = io.StringIO()
    Progress(stream=stream).marked("a row", [(False, "x" * 30), (True, "y" * 30), (False, "z")], letters=40)
    assert stream.getvalue().splitlines()[1] == "x" * 30 + "[[" + "y" * 10 + " ...]]"


def test_the_remaining_time_follows_from_the_latest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(stream=stream).bar("train", total=1000, unit="steps") as bar:
        bar.advance(400)  # done before, in a run that is resumed
        for seconds in [1] * 40 + [3] * 60:
            now[0] += seconds
            bar.advance(1)
    assert "train: 415/1000 steps 10 min left" in stream.getvalue()
    assert "train: 498/1000 steps 25 min left" in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("CI", "true"), ("MLFLOW_RUN_ID", "0" * 32), ("TERM", "dumb")]
)
def test_a_terminal_gets_plain_lines_where_nothing_may_be_drawn(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.bar("prepare", total=2, unit="rows") as bar, progress.training("train", total=2) as training:
        bar.advance()
        training.advance()
    assert stream.getvalue().splitlines() == ["prepare ...", "train ..."]
