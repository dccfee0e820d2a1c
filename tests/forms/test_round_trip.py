"""The clean process that loads logged models: it starts early, says why it failed, and never outlives the stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlflow_ft.engine.serving import bundle
from mlflow_ft.errors import RefusedError
from mlflow_ft.forms.round_trip import CleanProcess


def started() -> list[psutil.Process]:
    """The clean processes of this one."""
    return [child for child in psutil.Process().children() if str(bundle.FRESH_PROCESS) in child.cmdline()]


def test_it_ends_with_the_stage_whatever_it_is_doing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(bundle, "FRESH_PROCESS", script)
    with pytest.raises(KeyboardInterrupt), CleanProcess(tmp_path) as process:
        (child,) = started()
        assert os.getpgid(child.pid) != os.getpgid(0), "Ctrl-C reaches this process alone, which says how the run ended"
        raise KeyboardInterrupt
    assert not child.is_running()
    assert process._process.returncode == -signal.SIGKILL


def test_it_says_why_it_cannot_do_its_task(tmp_path: Path) -> None:
    task: dict[str, Any] = {"models": [{"name": "m", "folder": str(tmp_path / "nowhere"), "requests": []}]}
    with CleanProcess(tmp_path) as process, pytest.raises(RefusedError, match=r"No such file.*nowhere"):
        process.run(task)


def test_a_model_that_does_not_require_what_was_imported_early_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("jinja2\n")
    task: dict[str, Any] = {"models": [{"name": "m", "folder": str(tmp_path), "requests": []}]}
    with CleanProcess(tmp_path) as process, pytest.raises(RefusedError, match="No module named"):
        process.run(task)


def test_one_that_ended_by_itself_is_reported_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('out of memory')")
    monkeypatch.setattr(bundle, "FRESH_PROCESS", script)
    with CleanProcess(tmp_path) as process:
        (child,) = started()
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pytest.raises(RefusedError, match="out of memory"):
            process.run({"models": []})


def test_it_imports_only_what_all_models_require_and_ends_without_a_task(tmp_path: Path) -> None:
    """Its standard input ends as if the command that started it had been killed."""
    code = Path(bundle.FRESH_PROCESS).read_text(encoding="utf-8")
    script = tmp_path / "fresh.py"
    script.write_text(code + "    print(*sorted({name.partition('.')[0] for name in sys.modules}))\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-P", str(script)],
        input='["mlflow", "torch", "transformers", "safetensors", "accelerate", "jinja2"]\n',
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = ended.stdout.split()
    assert {"mlflow", "torch", "transformers"} <= set(imported)
    assert util.find_spec("dill")  # which torch imports where it is there
    assert not {"dill", "datasets", "mlflow_ft"} & set(imported)
