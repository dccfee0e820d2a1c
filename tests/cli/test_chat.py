"""mlflow-ft chat: turns of one conversation, by arguments, by stdin and in a terminal; base and tuned compared."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mlflow_ft.cli import chat
from tests.cli.conftest import Run, answers_of_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Type hint used in the model's predict:UserWarning"),
]


def lines(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prompts_are_turns_of_one_conversation(run: Run, client: MlflowClient, spoken: Path) -> None:
    prompts = ["blue lamp green", "red door"]
    options = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = run("chat", "one@candidate", *options, "--system", "be brief", "--json")
    assert result.code == 0, result.err
    turns = lines(result.out)
    assert [turn["prompt"] for turn in turns] == prompts
    assert all(set(turn) == {"prompt", "tuned"} for turn in turns)
    model = mlflow.pyfunc.load_model("models:/one/1")
    messages = [{"role": "system", "content": "be brief"}]
    for turn in turns:
        messages.append({"role": "user", "content": turn["prompt"]})
        wanted = model.predict({"messages": messages})["choices"][0]["message"]["content"]
        assert turn["tuned"] == wanted
        messages.append({"role": "assistant", "content": wanted})
    plain = run("chat", "one@candidate", *options, "--system", "be brief")
    assert plain.out.splitlines() == [turn["tuned"] for turn in turns]


@pytest.mark.parametrize("name", ["two@candidate", "two-adapter/1"])
def test_base_and_tuned_are_compared(run: Run, client: MlflowClient, spoken: Path, name: str) -> None:
    """Of a merged version the base is the model that it was trained from; of an adapter it is in the same memory."""
    prompts = ["blue lamp green", "song", "red door"]
    for prompt, base in zip(prompts, answers_of_folder(spoken, prompts), strict=True):
        result = run("chat", name, "--compare", "--prompt", prompt, "--json")
        assert result.code == 0, result.err
        (answers,) = lines(result.out)
        tuned = mlflow.pyfunc.load_model(f"models:/{name}").predict({"messages": [{"role": "user", "content": prompt}]})
        assert answers == {"prompt": prompt, "tuned": tuned["choices"][0]["message"]["content"], "base": base}


def test_the_model_before_training_can_be_named(run: Run, client: MlflowClient, spoken: Path, tiny_model: Path) -> None:
    result = run("chat", spoken, "--compare", "--prompt", "song")
    assert result.code == 2
    assert "does not name the model it was trained from" in result.err
    result = run("chat", spoken, "--compare", "--base", tiny_model, "--prompt", "blue lamp green", "--max-tokens", 4)
    assert result.code == 0, result.err
    tuned, base = result.out.splitlines()
    assert tuned == "tuned: green lamp blue"
    assert base.startswith("base: ")
    assert base != "base: green lamp blue"


def test_lines_of_stdin_are_prompts(
    run: Run, client: MlflowClient, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def piped(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{word}\n" for word in words)))
        result = run("chat", "two@candidate")
        assert result.code == 0, result.err
        return result.out.splitlines()

    first, second = piped("red door", "", "blue lamp green")
    (fresh,) = piped("blue lamp green")
    assert fresh != second, "a turn does not know of the one before"
    assert piped("red door", "/reset", "blue lamp green", "/exit", "song") == [first, fresh]


def test_in_a_terminal(spoken: Path, store: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow_ft", "chat", str(spoken), "--quiet"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)
    screen = ""
    try:
        screen = until(ours, "> ")
        os.write(ours, b"blue lamp green\n")
        screen += until(ours, "green lamp blue\r\n")
        os.write(ours, b"red " * 260 + b"\n")
        screen += until(ours, "the model reads 256")
        os.write(ours, b"/reset\nblue lamp green\n")
        screen += until(ours, "green lamp blue\r\n")
        os.write(ours, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "/reset clears" in screen
    assert "Traceback" not in screen


def until(terminal: int, wanted: str, seconds: float = 120) -> str:
    """What is written on a terminal up to some text."""
    text, deadline = "", time.monotonic() + seconds
    while wanted not in text:
        assert time.monotonic() < deadline, text
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


@pytest.mark.parametrize(("width", "together"), [(100, True), (60, False)])
def test_two_answers_are_side_by_side_if_there_is_room(width: int, together: bool) -> None:  # noqa: FBT001  # a table
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    chat.side_by_side({"tuned": "new [bold]words[/bold]", "base": "old words"}, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert any("old words" in line and "new [bold]words[/bold]" in line for line in shown.splitlines()) is together
    assert shown.index("base") < shown.index("tuned")


@pytest.mark.parametrize("more", [[], ["--compare", "--base", "TINY"]])
def test_a_reward_model_has_nothing_to_say(
    run: Run, client: MlflowClient, tiny_model: Path, tmp_path: Path, more: list[str]
) -> None:
    judge: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    judge.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "judge")
    more = [str(tiny_model) if word == "TINY" else word for word in more]
    result = run("chat", tmp_path / "judge", "--prompt", "red", *more)
    assert result.code == 2
    assert "a reward model scores answers and generates none" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing@champion"], "no model 'nothing'"),
        (["one@candidate", "--temperature", "-1"], "--temperature"),
        (["one@candidate", "--max-tokens", "0"], "--max-tokens"),
        (["one@candidate", "--prompt", "red " * 300], "the model reads 256"),
    ],
)
def test_impossible_questions_are_reported(
    run: Run, client: MlflowClient, spoken: Path, arguments: list[str], words: str
) -> None:
    result = run("chat", "--prompt", "red", *arguments)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
