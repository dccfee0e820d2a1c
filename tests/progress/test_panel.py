"""The panel of a training on a terminal."""

from __future__ import annotations

import re

import pytest

from mlflow_ft.progress import Progress
from mlflow_ft.progress.words import duration, sparkline
from tests.progress.test_progress import Terminal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def drawn(stream: Terminal) -> list[str]:
    """The last picture of the panel, a line each."""
    text = CONTROL.sub("", stream.getvalue())
    return text[text.rindex("╭") :].splitlines()


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_training_on_a_terminal_is_a_panel(width: int) -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.console.width = width
    with progress.training("train", total=40) as bar:
        for step in range(40):
            bar.point("loss", 4.0 - step / 10, step=step)
            bar.advance()
        bar.point("held-out loss", 2.0, step=20)
        bar.point("held-out loss", 2.5, step=40)
        bar.fact("speed", "812 tokens/s")
        bar.fact("memory", "5.1 GiB")
        progress.say("a line above it")
    top, steps, loss, held_out, facts, bottom = drawn(stream)
    assert {len(line) for line in (top, steps, loss, held_out, facts, bottom)} == {min(width, 80)}
    assert "train" in top
    assert "40/40 steps" in steps
    assert re.search(r"loss +0\.100 +█[▁▂▃▄▅▆▇█]+▁", loss)
    assert re.search(r"held-out loss +2\.500 +▁█", held_out)
    if width >= 80:
        assert "lowest 2.000 at step 20" in held_out
    assert "812 tokens/s · 5.1 GiB" in facts
    assert "a line above it" in CONTROL.sub("", stream.getvalue())


def test_a_terminal_without_these_letters_has_no_curve() -> None:
    class Old(Terminal):
        encoding = "ascii"

    stream = Old()
    with Progress(stream=stream).training("train", total=2) as bar:
        bar.point("loss", 2.0, step=1)
        bar.point("loss", 1.0, step=2)
    assert "lowest 1.000 at step 2" in stream.getvalue()
    assert "█" not in stream.getvalue()


def test_a_training_without_steps_has_a_panel_too() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError), Progress(stream=stream).training("train", total=2):
        raise RuntimeError("stopped")
    assert "0/2 steps" in CONTROL.sub("", stream.getvalue())


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([4, 3, 2, 1], 8, "█▆▃▁"), ([1, 1, 4, 4], 2, "▁█"), ([2, 2], 8, "▁▁"), ([1], 8, ""), ([], 8, "")],
)
def test_a_curve_in_a_line(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_long_curve_fits() -> None:
    assert len(sparkline([step % 7 for step in range(1001)], 24)) == 24


@pytest.mark.parametrize(("seconds", "words"), [(48, "48 s"), (600, "10 min"), (9000, "2 h 30 min"), (0, "0 s")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
