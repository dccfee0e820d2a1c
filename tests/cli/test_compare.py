from __future__ import annotations

import json
import os
import signal
import threading
import webbrowser
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.testing import make_tiny_model, write_jsonl
from tests.cli.conftest import Run
from tests.operations.comparing.conftest import Page

pytestmark = pytest.mark.filterwarnings("ignore:.*Type hint used in the model's predict:UserWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("contestants")
    return [str(make_tiny_model(folder / name, seed=seed)) for name, seed in (("ann", 1), ("bob", 2))]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"question": text} for text in ("blue lamp", "red door", "flat")])


def test_a_comparison_that_is_stopped_and_finished(
    run: Run, client: MlflowClient, models: list[str], rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def vote(url: str) -> None:
        page = Page(url)
        page.vote("left")
        if len(opened) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            page.vote("left")
            page.post("/finish")

    def as_browser(url: str) -> None:
        opened.append(url)
        threading.Thread(target=vote, args=[url]).start()

    monkeypatch.setattr(webbrowser, "open", as_browser)
    command = ["compare", *models, "--data", rows, "--data.columns", "prompt=question", "--max-tokens", 6, "--open"]
    stopped = run(*command)
    assert stopped.code == 130
    assert stopped.out == ""
    assert f"vote here: {opened[0]}" in stopped.err
    assert "95% interval" in stopped.err
    assert "1 (" in stopped.err
    resume = stopped.err.rpartition("to continue: mlflow-ft ")[2].split()
    assert resume[:2] == ["compare", "--resume"]
    elsewhere = run("resume", resume[2])
    assert (elsewhere.code, f"mlflow-ft compare --resume {resume[2]}" in elsewhere.err) == (2, True)
    finished = run(*resume, "--open", "--json", "--quiet")
    assert finished.code == 0
    first, last = map(json.loads, finished.out.splitlines())
    assert first == {"url": opened[1]}
    assert (last["run_id"], last["left"], last["result"]["votes"]) == (resume[2], 0, 3)
    assert finished.err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--data", "x"], "two models are compared, not 1"),
        (["--data", "x"], "two models are compared, not 0"),
        (["a", "b"], "no rows were named"),
        (["a", "--resume", "0123"], "leave out the others"),
        (["--resume", "0123", "--data", "x"], "leave out the others"),
        (["--resume", "0123"], "could not read the run 0123"),
        (["a", "b", "--dat.format", "x"], "No such option '--dat.format'"),
        (["a", "b", "--data", "x", "--data.fromat", "y"], "did you mean data.format?"),
        (["a", "b", "--data", "x.jsonl"], "'x.jsonl' does not exist"),
        (["a", "b", "--data", "ROWS", "--data.columns", "prompt=question"], "'a' is not a known model"),
        (["a", "b", "--data", "ROWS", "--limit", "0"], "is not in the range"),
    ],
)
def test_wrong_requests_are_refused(
    run: Run, client: MlflowClient, rows: Path, arguments: list[str], words: str
) -> None:
    result = run("compare", *(rows if argument == "ROWS" else argument for argument in arguments))
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
