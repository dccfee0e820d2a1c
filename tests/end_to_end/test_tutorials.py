"""The tutorials of docs/, word for word: what they show is what a user sees. On plugins: `tests/scaffolding`."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from tests.following import follow, missing, steps
from tests.scaffolding.conftest import ROOT, Environment, make_environment

DOCS = ROOT / "docs"
PAGES = sorted(set(DOCS.glob("tutorial-*.md")) - {DOCS / "tutorial-plugin.md"})
AFTER = {"tutorial-production.md": "tutorial-own-data.md"}
"""A page that goes on in the folder of another."""


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path / "environment")


@pytest.fixture
def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_has_commands_and_shows_what_they_print(page: Path) -> None:
    kinds = [step.kind for step in steps(page)]
    assert kinds.count("command") >= 2
    assert kinds.count("shown") >= 2
    assert kinds.index("command") < kinds.index("shown")


def test_numbers_and_widths_may_differ_but_words_and_order_may_not() -> None:
    printed = "loss 3.69\nrun a0\n│ loss │ 0.5 │\n"
    assert missing("loss 4\n...\n│  loss │ 0.25 │\n", printed) == ""
    assert missing("loss is 4\n", printed) == "loss is 4"
    assert missing(f"id-{'1a' * 16}\n", f"id-{'b2' * 16}\n") == ""
    assert missing("ran ...\n", printed) == "ran ..."
    assert missing("run ...\n", printed) == ""
    assert missing("│ loss │ 1 │\nloss 4\n", printed) == "loss 4"


@pytest.mark.long
@pytest.mark.end_to_end
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_word_for_word(page: Path, tmp_path: Path, environment: Environment, port: str) -> None:
    folder = tmp_path / "empty"
    if page.stem == "tutorial-first-model":
        checkout(folder)
    else:
        folder.mkdir()

    def here(command: str) -> str:
        """With this environment instead of one that `make` installs, and with a port that is free."""
        if command.startswith("source "):
            return ""
        return command.replace("make demo", "mlflow run . -e qlora --env-manager local").replace("5001", port)

    for name in (AFTER.get(page.name), page.name):
        if name:
            follow(DOCS / name, folder, environment, here)


def checkout(folder: Path) -> None:
    """What a clone has that the demo needs."""
    folder.mkdir()
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mlflow_ft", folder / "mlflow_ft", ignore=shutil.ignore_patterns("__pycache__"))
