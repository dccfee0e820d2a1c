"""`mlflow-ft plugins new`: packages of every kind are clean, load, install, and pass their own tests."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mlflow_ft import plugins
from mlflow_ft.cli import cli
from mlflow_ft.errors import ConfigError, FineTuneError, PluginError
from mlflow_ft.plugins import Plugins
from mlflow_ft.scaffolding.kinds import KINDS, catalogue
from mlflow_ft.scaffolding.names import LONGEST
from mlflow_ft.scaffolding.package import hooks_in, new_plugin
from mlflow_ft.scaffolding.rendering import TEMPLATES
from mlflow_ft.testing.contract.records import check_words
from tests.scaffolding.conftest import Environment

SEVERAL = ("format", "trainer", "evaluator", "gate", "options")


@pytest.fixture
def loaded() -> Plugins:
    return plugins.load({})


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported; they are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_every_kind_has_templates_and_every_template_is_a_kind() -> None:
    assert {folder.name for folder in (TEMPLATES / "plugin" / "kinds").iterdir()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_of_one_kind_loads_and_registers_it(kind: str, importable: Path, loaded: Plugins) -> None:
    name = f"only-{kind}"
    made = new_plugin(name, [kind], importable, loaded)
    module = importlib.import_module(made.names.module)
    info = loaded.add(module, name=name)
    assert (info.status, info.error) == ("active", "")
    records = [registered for registered in loaded.registered if registered.provider == name]
    for registered in records:
        check_words(registered.kind, registered.record)
    own = {registered.kind for registered in records}
    assert own == ({catalogue(kind)} if catalogue(kind) in plugins.KINDS else set())
    assert f"tests/test_{catalogue(kind)}.py" in made.files
    assert hooks_in((importable / made.names.module / f"{catalogue(kind)}.py").read_text())


@pytest.mark.parametrize("name", ["t", "mlflow-ft-" + "n" * (LONGEST - 10), "N" * LONGEST])
def test_they_are_clean_whatever_their_name(name: str, tmp_path: Path, loaded: Plugins) -> None:
    for number, kinds in enumerate([*([kind] for kind in KINDS), SEVERAL, tuple(KINDS)]):
        folder = tmp_path / f"package-{number}"
        made = new_plugin(name, kinds, folder, loaded)
        written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert written == set(made.files)
        assert yaml.safe_load((folder / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["steps"]
        assert "{{" not in "".join(file.read_text() for file in folder.rglob("*.py"))
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_all_kinds_install_and_are_active_as_they_stand(tmp_path: Path, environment: Environment) -> None:
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    run = environment.run
    made = run("python", "-m", "mlflow_ft", "plugins", "new", "all-kinds", *kinds, "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    about = json.loads(made.stdout)
    assert (about["plugin"], about["module"], about["kinds"]) == ("all-kinds", "all_kinds", list(KINDS))
    environment.install(tmp_path / "all-kinds")
    listed = run("python", "-m", "mlflow_ft", "plugins", "--json", cwd=tmp_path, MLFLOW_FT_STRICT="1")
    assert listed.returncode == 0, listed.stderr
    [info] = [info for info in json.loads(listed.stdout) if info["name"] == "all-kinds"]
    assert (info["status"], info["version"], info["module"]) == ("active", "0.1.0", "all_kinds")
    tests = run("python", "-m", "pytest", "-q", "--collect-only", cwd=tmp_path / "all-kinds")
    assert "test_contract.py::test_contract" in tests.stdout


def own_tests(kinds: list[str], folder: Path, environment: Environment, loaded: Plugins) -> None:
    new_plugin("my-plugin", kinds, folder, loaded)
    environment.install(folder)
    done = environment.run("python", "-m", "pytest", "-q", "-x", cwd=folder, timeout=1500)
    assert done.returncode == 0, done.stdout


def test_one_passes_its_own_tests(tmp_path: Path, environment: Environment, loaded: Plugins) -> None:
    own_tests(["check"], tmp_path / "package", environment, loaded)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), list(SEVERAL), list(KINDS)], ids="+".join)
def test_each_passes_its_own_tests(kinds: list[str], tmp_path: Path, environment: Environment, loaded: Plugins) -> None:
    own_tests(kinds, tmp_path / "package", environment, loaded)


@pytest.mark.parametrize(
    ("name", "kinds", "said"),
    [
        ("my plugin", ["check"], "cannot be the name of a package"),
        ("-plugin", ["check"], "cannot be the name of a package"),
        ("../plugin", ["check"], "cannot be the name of a package"),
        ("2plugin", ["check"], "2plugin is no Python identifier"),
        ("class", ["check"], "class is a word of Python's own"),
        ("json", ["check"], "json is a module of Python's standard library"),
        ("lora", ["check", "trainer"], "builtin.trainers registers lora in trainers"),
        ("mlflow-ft", ["check"], "is installed"),
        ("mlflow-ft-ppo", ["check"], "a plugin ppo is there already"),
        ("yaml", ["check"], "there is a module yaml"),
        ("n" * (LONGEST + 1), ["check"], "41 characters"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    name: str, kinds: list[str], said: str, tmp_path: Path, loaded: Plugins
) -> None:
    with pytest.raises(PluginError, match=said):
        new_plugin(name, kinds, tmp_path / "package", loaded)
    assert not (tmp_path / "package").exists()


def test_a_name_that_another_kind_has_is_free(tmp_path: Path, loaded: Plugins) -> None:
    assert new_plugin("lora", ["check"], tmp_path / "package", loaded).names.slug == "lora"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, loaded: Plugins) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty: it has mine\.txt"):
        new_plugin("my-plugin", ["check"], tmp_path, loaded)
    with pytest.raises(ConfigError, match="is no folder"):
        new_plugin("my-plugin", ["check"], tmp_path / "mine.txt", loaded)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_new_repository_is_an_empty_folder(tmp_path: Path, loaded: Plugins) -> None:
    (tmp_path / ".git").mkdir()
    assert "pyproject.toml" in new_plugin("my-plugin", ["check"], tmp_path, loaded).files


def test_nothing_is_left_of_a_package_that_cannot_be_written(
    tmp_path: Path, loaded: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_text

    def full(self: Path, *arguments: object, **more: object) -> int:
        if self.name == "test_contract.py":
            raise OSError(28, "No space left on device")
        return written(self, *arguments, **more)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match="No space left"):
        new_plugin("my-plugin", ["check"], tmp_path / "package", loaded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["my-plugin"], "no kind given"), (["my-plugin", "--kind", "formats"], "'formats' is not one of 'format'")],
)
def test_a_kind_is_needed(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    monkeypatch.chdir(tmp_path)
    with pytest.raises((FineTuneError, click.UsageError), match=said):
        cli.main(["plugins", "new", *arguments], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
