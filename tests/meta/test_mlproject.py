"""MLproject: one entry point per method of ours, and a parameter's value never becomes a command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from mlflow_ft import plugins
from mlflow_ft.registry import Registry

ROOT = Path(__file__).parents[2]
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS = MLPROJECT["entry_points"]
COMMANDS = {name: entry_point["command"] for name, entry_point in ENTRY_POINTS.items()}
JOBS = {
    "plan",
    "sweep",
    "preflight",
    "prepare",
    "align",
    "rlhf",
    "promote",
    "merge",
    "export",
    "package",
    "reproduce",
    "resume",
}
"""Entry points that are commands of their own, not methods."""
HOSTILE = "; touch owned; $(touch owned) `touch owned` ' \" \\ && touch owned | touch owned\n touch owned #{model}"
STAND_IN = """
import json, pathlib, sys
pathlib.Path("argv.json").write_text(json.dumps(sys.argv[1:]))
"""


def own_plugins() -> set[str]:
    """The plugins of this repository that are there to be used, not to be copied."""
    files = [tomllib.loads(file.read_text()) for file in ROOT.glob("plugins/*/pyproject.toml")]
    used = [file for file in files if file.get("tool", {}).get("mlflow-ft", {}).get("load-from-checkout", True)]
    return {name for file in used for name in file["project"]["entry-points"]["mlflow_ft"]}


def own_methods() -> set[str]:
    """Those of the built-in plugins and of this repository's own."""
    trainers = Registry(plugins.load({})).trainers
    providers = {trainer.name: trainers.provider(trainer.name) for trainer in trainers}
    ours = own_plugins()
    return {name for name, provider in providers.items() if provider.startswith("builtin.") or provider in ours}


def test_entry_points_are_our_methods() -> None:
    methods = own_methods()
    assert {"qlora", "ppo"} <= methods, "the built-in plugins, or those of this repository, were not found"
    assert "gentle-lora" not in methods, "a template's method is there to be copied"
    assert set(ENTRY_POINTS) == methods | {"main"} | JOBS


def test_the_default_method_exists() -> None:
    assert ENTRY_POINTS["main"]["parameters"]["method"]["default"] in own_methods()


def test_environment_is_the_conda_file_alone() -> None:
    """MLflow refuses two environment keys."""
    assert {key: MLPROJECT[key] for key in MLPROJECT if key.endswith("_env")} == {"conda_env": "conda.yaml"}
    assert (ROOT / "conda.yaml").is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_runs_the_code_of_the_project_folder(name: str) -> None:
    method = "{method}" if name == "main" else name
    command = name if name in JOBS else f"train {method}"
    assert COMMANDS[name].startswith(f"python -m mlflow_ft {command} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_placeholder_is_quoted(name: str) -> None:
    """MLflow quotes every value itself; quotes around the placeholder would end that quoting."""
    assert not re.search(r"""['"`\\$;&|<>]""", COMMANDS[name])
    for before, after in re.findall(r"(.?)\{\w+\}(.?)", COMMANDS[name]):
        assert (before.strip(), after.strip()) == ("", ""), "a placeholder is a word of its own"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_is_optional_and_used(name: str) -> None:
    parameters = ENTRY_POINTS[name]["parameters"]
    assert set(re.findall(r"\{(\w+)\}", COMMANDS[name])) == set(parameters)
    for parameter in parameters.values():
        assert parameter["type"] == "string", "a path would be refused before the project can say what is wrong"
        assert isinstance(parameter["default"], str), "no default means that MLflow demands a value"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our MLproject, around a package `mlflow_ft` that only writes down how it was called."""
    folder = tmp_path / "project"
    package = folder / "mlflow_ft"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder / name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return folder


def called_with(project: Path) -> list[str]:
    assert not (project / "owned").exists(), "a value was run as a command"
    arguments = json.loads((project / "argv.json").read_text())
    assert isinstance(arguments, list)
    return arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_a_value_is_never_a_command(name: str, project: Path) -> None:
    from mlflow.projects.utils import load_project

    entry_point = load_project(str(project)).get_entry_point(name)
    values = {parameter: f"{parameter} {HOSTILE}" for parameter in ENTRY_POINTS[name]["parameters"]}
    command = entry_point.compute_command(values, None)
    subprocess.run(["bash", "-c", command], cwd=project, check=True, timeout=60)
    command = (name,) if name in JOBS else ("train", values.get("method", name))
    command += (values["method"],) if name in ("preflight", "sweep") else ()
    given = [word for key, value in values.items() if key != "method" for word in (f"--{key}", value)]
    assert called_with(project) == [*command, *given]


def test_a_value_that_mlflow_run_takes_is_never_a_command(project: Path, tmp_path: Path) -> None:
    from mlflow import projects

    parameters = {"model": HOSTILE, "training.learning_rate": HOSTILE, "run.name": "-1"}
    run = projects.run(str(project), entry_point="qlora", parameters=parameters, env_manager="local")
    assert run.get_status() == "FINISHED"
    assert called_with(project) == [
        *("train", "qlora", "--model", HOSTILE, "--data", "", "--config", ""),
        *("--training.learning_rate", HOSTILE, "--run.name", "-1"),
    ]
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize(("target", "installs"), [("demo", False), ("test", True), ("lint", True)])
def test_the_template_is_installed_for_tests_and_not_for_the_demo(target: str, *, installs: bool) -> None:
    """It is there to be copied; in a user's demo it has no part."""
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "-e '.[test" in shown
    assert ("plugins/mlflow-ft-template" in shown) == installs
