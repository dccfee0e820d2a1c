"""Python environments for tools whose pinned packages conflict with ours: made once with venv and pip, then reused.

tool = environments.find_or_make("axolotl", ["torch==2.13.0", "axolotl==0.21.0"], progress=job.progress)
subprocess.run([tool.python, "-m", "axolotl.cli.train", "config.yml"], env=tool.variables())
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_ft import disk
from mlflow_ft.data.cache import cache_dir
from mlflow_ft.errors import PluginError
from mlflow_ft.progress import Progress

DONE = "environment.json"
"""Written last: an environment without it is incomplete, and is made again."""
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
LAST_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python environment that contains a tool."""

    name: str
    python: Path
    """Its interpreter."""
    packages: Mapping[str, str]
    """Its installed packages and their versions."""

    def variables(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for a process in it: ours without those that would import our packages there, and `more`."""
        kept = {name: value for name, value in os.environ.items() if name not in OURS}
        path = os.pathsep.join(filter(None, (str(self.python.parent), kept.get("PATH", ""))))
        return kept | {"PATH": path} | dict(more or {})


def find_or_make(
    name: str, requirements: Sequence[str], *, progress: Progress, python: str | None = None, pip: Sequence[str] = ()
) -> Environment:
    """The environment that has exactly these requirements; it is made the first time, which takes minutes.

    One that another process is making is waited for. It is kept in `~/.cache/mlflow-ft/environments`, named by the
    requirements, the options and the version of Python, so that another list makes another environment.

    Args:
        name: the tool, for the folder and for messages.
        requirements: as pip reads them; pin every package whose version matters.
        progress: where the wait is reported.
        python: the interpreter of an environment of the user's own, which is used as it is.
        pip: further options of `pip install`, such as `--extra-index-url`.

    Raises:
        PluginError: pip failed, with its last lines; or `python` does not run.
    """
    if python:
        return Environment(name=name, python=Path(python), packages=_packages(Path(python), name))
    folder = cache_dir() / "environments" / f"{name}-{_key(requirements, pip)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    interpreter = folder / "bin" / "python"
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / DONE).is_file():
            progress.say(f"installing {name} into an environment of its own (minutes, the first time): {folder}")
            _make(folder, name, requirements, pip)
        return Environment(name=name, python=interpreter, packages=json.loads((folder / DONE).read_text())["packages"])


def _key(requirements: Sequence[str], pip: Sequence[str]) -> str:
    about = [sorted(requirements), list(pip), platform.python_version(), platform.machine()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def _make(folder: Path, name: str, requirements: Sequence[str], pip: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", str(folder)], name, "venv")
        python = folder / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *pip, *requirements]
        _run(install, name, "pip install")
        disk.write_json(folder / DONE, {"requirements": sorted(requirements), "packages": _packages(python, name)})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _packages(python: Path, name: str) -> dict[str, str]:
    listed = _run([str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"], name, "pip list")
    return {package["name"]: package["version"] for package in json.loads(listed)}


def _run(command: Sequence[str], name: str, what: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in OURS}
    try:
        done = subprocess.run(command, env=clean, text=True, capture_output=True, check=False)
    except OSError as error:
        raise PluginError(f"{name}: {command[0]} does not run: {error}", hint="name a Python interpreter") from error
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        raise PluginError(
            f"the environment for {name} could not be made: {what} failed\n{last}",
            hint=f"install {name} into an environment of your own and name its interpreter in the plugin's settings",
        )
    return done.stdout
