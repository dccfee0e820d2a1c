"""`mlflow-ft --help` and `mlflow-ft plugins` answer at once: they import nothing that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("accelerate", "bitsandbytes", "datasets", "mlflow", "numpy", "pandas", "peft", "pydantic", "torch"),
    *("transformers", "trl"),
}
# The interpreter's own list, -X importtime, leaves out what importlib.import_module imports; sys.modules has it all.
RUN_AND_TELL = """
import atexit, json, os, runpy, sys
atexit.register(lambda: open(os.environ["TOLD"], "w").write(json.dumps(sorted(sys.modules))))
runpy.run_module("mlflow_ft", run_name="__main__", alter_sys=True)
"""


def imported_by(told: Path, *arguments: str) -> set[str]:
    """Names of every module that `python -m mlflow_ft ARGUMENTS` has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_TELL, *arguments],
        cwd=ROOT,
        env=os.environ | {"TOLD": str(told)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    modules = set(json.loads(told.read_text()))
    assert {"mlflow_ft.cli", "click"} <= modules, "the command did not run"
    return modules


def heavy(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules} & HEAVY


def test_help_is_light(tmp_path: Path) -> None:
    assert heavy(imported_by(tmp_path / "told", "--help")) == set()


def test_plugins_is_light_though_it_loads_them(tmp_path: Path) -> None:
    modules = imported_by(tmp_path / "told", "plugins")
    assert {"mlflow_ft.builtin.trainers", "pluggy"} <= modules
    assert heavy(modules) == set()


def test_help_on_training_reads_the_schema_alone(tmp_path: Path) -> None:
    """The options are the config's fields, which pydantic knows; nothing that trains is imported."""
    assert heavy(imported_by(tmp_path / "told", "train", "--help")) == {"pydantic"}


def test_the_public_api_imports_nothing_heavy() -> None:
    code = "import sys, mlflow_ft; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "mlflow_ft" in loaded
    assert loaded & HEAVY == set()
