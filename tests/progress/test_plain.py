"""Plain lines: nothing is silent for long, and work of hours does not fill a log."""

from __future__ import annotations

import io
import time

import pytest

from mlflow_ft.progress import Progress, plain


class Clock:
    """A time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(plain.time, "monotonic", lambda: self.now)


def until(stream: io.StringIO, text: str) -> None:
    """Wait for a text; there is a line each few milliseconds here."""
    for _ in range(1000):
        if text in stream.getvalue():
            return
        time.sleep(0.01)
    pytest.fail(f"{text!r} is not in {stream.getvalue()!r}")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "SILENCE", 0.03)
    monkeypatch.setattr(plain, "LOOK", 0.01)


@pytest.mark.usefixtures("hasty")
def test_work_that_says_nothing_still_has_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with progress.bar("load model"):
        until(stream, "load model: 0 s so far")
    with progress.training("train", total=3) as bar:
        bar.point("loss", 2.5, step=1)
        bar.fact("pace", "4.3 s/step")
        until(stream, "train: 0/3 steps loss 2.500, 4.3 s/step, 0 s so far")
    lines = len(stream.getvalue())
    time.sleep(0.1)
    assert len(stream.getvalue()) == lines, "nothing is printed after the end"


@pytest.mark.usefixtures("hasty")
def test_of_work_in_other_work_only_the_inner_one_has_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with progress.bar("outer"):
        with progress.bar("inner"):
            for _ in range(10):
                stream.truncate(0)
                until(stream, "inner: 0 s so far")
                assert "outer: " not in stream.getvalue()
        assert "outer: " not in stream.getvalue()
        until(stream, "outer: 0 s so far")


@pytest.mark.usefixtures("hasty")
def test_work_that_failed_has_no_more_lines() -> None:
    stream = io.StringIO()
    with pytest.raises(OSError, match="full"), Progress(stream=stream).bar("save"):
        raise OSError("full")
    time.sleep(0.1)
    assert stream.getvalue().splitlines() == ["save ..."]


def test_any_line_counts_as_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream)
    with progress.bar("train", total=9, unit="steps") as bar:
        clock.now = 4
        progress.warn("a warning")
        clock.now = 8
        bar.advance()
        assert "train: 1/9" not in stream.getvalue()
        clock.now = 9
        bar.advance()
        assert "train: 2/9" in stream.getvalue()


def test_after_ten_minutes_there_are_fewer_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream=stream).bar("train", total=10_000, unit="steps") as bar:
        for _ in range(1200):
            clock.now += 1
            bar.advance()
    assert stream.getvalue().count("left") in range(130, 141)  # 120 and 20


def test_the_latest_values_of_a_training_are_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(stream=stream).training("train", total=4) as bar:
        bar.point("loss", 3.0, step=1)
        bar.point("loss", 2.0, step=2)
        bar.point("held-out loss", 2.5, step=2)
        bar.fact("speed", "800 tokens/s")
        bar.fact("speed", "812 tokens/s")
        clock.now = 5
        bar.advance()
    assert "train: 1/4 steps loss 2.000, held-out loss 2.500, 812 tokens/s, 5 s so far" in stream.getvalue()
