"""Environments of tools: made once, found again, made anew where they are incomplete, never half made."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlflow_ft.engine import environments
from mlflow_ft.errors import PluginError
from mlflow_ft.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on disk, so that nothing is downloaded; the cache is a folder of the test."""
    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "wheel"
    folder.mkdir()
    (folder / "sometool.py").write_text("VERSION = 3\n")
    info = "[project]\nname = 'sometool'\nversion = '3.0'\n[build-system]\nrequires = []\n"
    info += "build-backend = 'backend'\nbackend-path = ['.']\n"
    (folder / "pyproject.toml").write_text(info)
    (folder / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(out, config_settings=None, metadata_directory=None):\n"
        "    name = 'sometool-3.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(f'{out}/{name}', 'w') as wheel:\n"
        "        wheel.write('sometool.py')\n"
        "        info = 'sometool-3.0.dist-info/'\n"
        "        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: sometool\\nVersion: 3.0\\n')\n"
        "        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        wheel.writestr(info + 'RECORD', '')\n"
        "    return name\n"
    )
    return str(folder)


def test_it_is_made_once_and_holds_the_tool_and_nothing_of_ours(package: str) -> None:
    made = environments.find_or_make("tool", [package], progress=QUIET)
    assert made.packages["sometool"] == "3.0"
    assert "mlflow" not in made.packages
    changed = made.python.stat().st_mtime_ns
    again = environments.find_or_make("tool", [package], progress=QUIET)
    assert (again, again.python.stat().st_mtime_ns) == (made, changed)
    shown = subprocess.run(
        [again.python, "-c", "import sometool, os; print(sometool.VERSION, os.environ['KEY'])"],
        env=again.variables({"KEY": "k"}),
        text=True,
        capture_output=True,
        check=True,
    )
    assert shown.stdout == "3 k\n"
    assert "PYTHONPATH" not in again.variables()


def test_one_that_was_interrupted_is_made_again(package: str) -> None:
    made = environments.find_or_make("tool", [package], progress=QUIET)
    (made.python.parents[1] / environments.DONE).unlink()
    (made.python.parents[1] / "left-over").touch()
    again = environments.find_or_make("tool", [package], progress=QUIET)
    assert again == made
    assert not (made.python.parents[1] / "left-over").exists()


def test_what_pip_says_is_reported_and_nothing_is_left(tmp_path: Path, package: str) -> None:
    with pytest.raises(PluginError, match=r"pip install failed(.|\n)*nowhere") as refused:
        environments.find_or_make("tool", [str(tmp_path / "nowhere")], progress=QUIET)
    assert "of your own" in str(refused.value)
    assert not list((tmp_path / "cache" / "environments").glob("tool-*/"))


def test_two_at_once_make_one(package: str) -> None:
    found: list[environments.Environment] = []

    def find() -> None:
        found.append(environments.find_or_make("tool", [package], progress=QUIET))

    threads = [threading.Thread(target=find) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]


def test_an_environment_of_the_users_own_is_used_as_it_is(package: str) -> None:
    used = environments.find_or_make("tool", [package], progress=QUIET, python=sys.executable)
    assert used.python == Path(sys.executable)
    assert "mlflow" in used.packages
    with pytest.raises(PluginError, match="does not run"):
        environments.find_or_make("tool", [package], progress=QUIET, python="/nowhere/python")
