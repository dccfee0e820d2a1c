"""The tutorial about plugins, word for word."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlflow_ft.testing import make_tiny_model
from tests.following import follow, steps
from tests.scaffolding.conftest import ROOT, Environment

PAGE = ROOT / "docs" / "tutorial-plugin.md"


def line_of(said: dict[str, tuple[int, str]], command: str) -> tuple[int, str]:
    """What the command that begins so said."""
    return next(result for text, result in said.items() if text.startswith(command))


def test_every_step_is_found() -> None:
    files = [step.file for step in steps(PAGE) if step.kind == "file"]
    assert files == [
        *("quiz/quiz/formats.py", "make_questions.py", "quiz/quiz/evaluators.py", "quiz/quiz/trainers.py"),
        *("quiz/quiz/gates.py", "gates.yaml", "quiz/tests/test_contract.py"),
    ]
    commands = [step.text for step in steps(PAGE) if step.kind == "command"]
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

    said = follow(PAGE, folder, environment, quick, may_fail="promote")
    assert re.search(r"(?m)^quiz +active", said["mlflow-ft plugins"][1])
    assert "quiz_letter" in line_of(said, "mlflow-ft train")[1]
    code, text = line_of(said, "mlflow-ft promote")
    assert (code, "of the answers are a letter" in text) == (1, True)
    assert "quiz:" in (folder / "quiz-project" / "MLproject").read_text()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_word_for_word_it_makes_a_champion(tmp_path: Path, environment: Environment) -> None:
    said = follow(PAGE, tmp_path, environment, may_fail="promote")
    assert "passed" in line_of(said, "(cd quiz && python -m pytest")[1]
    code, text = line_of(said, "mlflow-ft promote")
    assert code == 0, text
    run = "import json, mlflow_ft.tracking as t; s = t.Store.connect(); print(json.dumps(s.run(s.version('smollm2-135m-"
    run += "quiz', 'champion').run_id).data.metrics))"
    metrics = json.loads(environment.run("python", "-c", run, cwd=tmp_path).stdout.splitlines()[-1])
    assert metrics["eval/tuned/quiz_letter"] >= 0.9 > metrics["eval/base/quiz_letter"]
