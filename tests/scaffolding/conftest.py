"""A virtual environment that sees our packages, and into which new ones are really installed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment beside ours."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, package: Path) -> None:
        """`pip install --no-deps -e`, with the build backend that is installed here, so that nothing is fetched."""
        done = self.run("pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(package), cwd=package)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, cwd: Path, timeout: int = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment; its programs come first on PATH."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MLFLOW_FT"))}
        variables |= {"PYTHONPATH": str(ROOT), "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}", **more}
        return subprocess.run(
            arguments, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )


def make_environment(folder: Path) -> Environment:
    """An empty environment, with the packages of ours behind its own."""
    venv.create(folder, with_pip=False)
    made = Environment(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours: Sequence[str] = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in ours)
    (folder / "lib" / version / "site-packages" / "ours.pth").write_text(lines)
    programs = {
        "pip": f"{shlex.quote(sys.executable)} -m pip --python {shlex.quote(str(made.python))}",
        "mlflow-ft": f"{shlex.quote(str(made.python))} -P -m mlflow_ft",  # -P: as a program, without the current folder
    }
    for name, command in programs.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
    return made


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path / "environment")
