"""The tutorial, word for word: its files are written and its commands are run, in the order of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mlflow_ft.testing import make_tiny_model
from tests.scaffolding.conftest import ROOT, Environment

PAGE = ROOT / "docs" / "tutorial-plugin.md"
FILE = r"`([\w./-]+\.(?:py|yaml))`:\s*\Z"


class Step(NamedTuple):
    """A file to write, or a command to run."""

    file: str
    text: str


def steps() -> Iterator[Step]:
    """The steps of the page; the paragraph before a file's content ends with its name and a colon."""
    parts = re.split(r"(?ms)^```(\w+)\n(.*?)^```\n", PAGE.read_text())
    for before, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if language == "bash":
            yield from (Step("", line) for line in text.splitlines())
            continue
        named = re.search(FILE, before)
        assert named, f"the page does not say which file this is: {text[:60]}"
        yield Step(named[1], text)


def follow(folder: Path, environment: Environment, change: Callable[[str], str] = str) -> dict[str, tuple[int, str]]:
    """Do what the page says in an empty folder; each command with its exit code and what it printed."""
    said = {}
    for file, text in steps():
        if file:
            assert (folder / file).parent.is_dir(), file
            (folder / file).write_text(text)
        elif command := change(text):
            done = environment.run("bash", "-c", command, cwd=folder, timeout=3000)
            said[text] = (done.returncode, done.stdout + done.stderr)
            assert done.returncode == 0 or "promote" in text, f"{text}\n{done.stdout}\n{done.stderr}"
    return said


def line_of(said: dict[str, tuple[int, str]], command: str) -> tuple[int, str]:
    """What the command that begins so said."""
    return next(result for text, result in said.items() if text.startswith(command))


def test_every_step_is_found() -> None:
    files = [file for file, _ in steps() if file]
    assert files == [
        *("quiz/quiz/formats.py", "make_questions.py", "quiz/quiz/evaluators.py", "quiz/quiz/trainers.py"),
        *("quiz/quiz/gates.py", "gates.yaml", "quiz/tests/test_contract.py"),
    ]
    commands = [text for file, text in steps() if not file]
    assert [text.split()[1] for text in commands if text.startswith("mlflow-ft ")] == [
        *("plugins", "plugins", "data", "train", "promote", "project"),
    ]


@pytest.mark.timeout(1200)
def test_it_leads_from_an_empty_folder_to_a_promotion(tmp_path: Path, environment: Environment) -> None:
    """With a tiny model, which does not learn to answer with letters: the gate of the page says so."""
    model, folder = make_tiny_model(tmp_path / "tiny"), tmp_path / "empty"
    folder.mkdir()

    def quick(command: str) -> str:
        if command.startswith("mlflow-ft train"):
            return f"{command} --model {model} --max_steps 2 --package.round_trip false"
        if command.startswith("mlflow-ft data show"):
            return f"{command} --model {model}"
        return "" if "pytest" in command else command.replace("smollm2-135m", "tiny")

    said = follow(folder, environment, quick)
    assert re.search(r"(?m)^quiz +active", said["mlflow-ft plugins"][1])
    assert "quiz_letter" in line_of(said, "mlflow-ft train")[1]
    code, text = line_of(said, "mlflow-ft promote")
    assert (code, "of the answers are a letter" in text) == (1, True)
    assert "quiz:" in (folder / "quiz-project" / "MLproject").read_text()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_word_for_word_it_makes_a_champion(tmp_path: Path, environment: Environment) -> None:
    said = follow(tmp_path, environment)
    assert "passed" in line_of(said, "(cd quiz && python -m pytest")[1]
    code, text = line_of(said, "mlflow-ft promote")
    assert code == 0, text
    run = "import json, mlflow_ft.tracking as t; s = t.Store.connect(); print(json.dumps(s.run(s.version('smollm2-135m-"
    run += "quiz', 'champion').run_id).data.metrics))"
    metrics = json.loads(environment.run("python", "-c", run, cwd=tmp_path).stdout.splitlines()[-1])
    assert metrics["eval/tuned/quiz_letter"] >= 0.9 > metrics["eval/base/quiz_letter"]
