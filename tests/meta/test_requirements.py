"""One list of requirements, told three times: ranges in pyproject.toml, pins in conda.yaml and constraints.txt."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
INSTALLERS = {"pip", "setuptools"}
"""Never pinned: every environment brings its own."""
PARTS = {"annotated_types": "pydantic", "pydantic_core": "pydantic", "tokenizers": "transformers"}
"""Modules of distributions that come with another one, whose documented interface they are part of."""


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements: dict[str, Requirement] = {}
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name not in requirements, f"{name} is listed twice"
        requirements[name] = requirement
    return requirements


def read_pins() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return [line for line in lines if line]


def extra(name: str) -> dict[str, Requirement]:
    return by_name(PROJECT["optional-dependencies"][name])


DIRECT = by_name(PROJECT["dependencies"])
CONDA_PIP = by_name(next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)))
PINS = by_name(read_pins())


def pinned_version(requirement: Requirement) -> str:
    exact = re.fullmatch(r"==([0-9][0-9A-Za-z.]*)", str(requirement.specifier))
    assert exact, f"{requirement} is not pinned exactly"
    assert not requirement.extras
    assert requirement.url is None
    return exact[1]


def test_conda_names_what_pyproject_names() -> None:
    assert sorted(CONDA_PIP) == sorted(DIRECT)


def test_conda_holds_third_party_packages_only() -> None:
    assert PROJECT["name"] not in CONDA_PIP
    assert [entry for entry in CONDA["dependencies"] if isinstance(entry, str)][1:] == ["pip"]
    assert CONDA["channels"] == ["conda-forge"]


def test_conda_pins_python_to_the_patch() -> None:
    name, _, version = CONDA["dependencies"][0].partition("=")
    assert name == "python"
    assert re.fullmatch(r"3\.\d+\.\d+", version), "MLflow builds the newest Python from source for a shorter pin"
    assert version in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", sorted(CONDA_PIP))
def test_conda_pins_the_tested_version(name: str) -> None:
    assert pinned_version(CONDA_PIP[name]) == pinned_version(PINS[name])


@pytest.mark.parametrize("name", sorted(PINS))
def test_every_constraint_is_exact(name: str) -> None:
    assert pinned_version(PINS[name])
    assert name not in INSTALLERS


GROUPS = ("test", "lint", "gpu", "gguf", "lm-eval", "ray", "deepspeed")
EXTRAS = {name: needed for group in GROUPS for name, needed in extra(group).items()}


@pytest.mark.parametrize("name", sorted(DIRECT | EXTRAS))
def test_the_tested_version_is_in_range(name: str) -> None:
    assert pinned_version(PINS[name]) in (DIRECT | EXTRAS)[name].specifier


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_every_range_is_closed_above(name: str) -> None:
    operators = {specifier.operator for specifier in DIRECT[name].specifier}
    assert operators == {">=", "<"}, f"{DIRECT[name]}: give a lower bound and the next major version"


def closure(names: set[str]) -> Iterator[str]:
    """Every distribution that these need, by what is installed here."""
    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        yield key[0]
        for line in metadata.requires(requirement.name) or []:
            needed = Requirement(line)
            wanted = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in wanted):
                waiting.append(needed)


def test_constraints_pin_everything_that_is_needed() -> None:
    missing = set(closure(set(DIRECT) | set(extra("test")) | {"lm-eval", "ray[train,tune]"})) - set(PINS) - INSTALLERS
    assert not missing


def third_party_imports() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "mlflow_ft").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {module.partition(".")[0] for module in modules} - {"mlflow_ft"} - sys.stdlib_module_names:
                yield module, f"{file.relative_to(ROOT)}:{node.lineno}"


def test_what_is_imported_is_required() -> None:
    """An import that works only because another package happens to need the same library breaks one day."""
    allowed = set(DIRECT) | set().union(*map(extra, PROJECT["optional-dependencies"].keys() - {"dev", "lint"}))
    distributions = dict(metadata.packages_distributions()) | {part: [whole] for part, whole in PARTS.items()}
    unlisted = [
        f"{place}: {module}"
        for module, place in third_party_imports()
        if not {canonicalize_name(name) for name in distributions.get(module, [module])} & allowed
    ]
    assert not unlisted


def test_the_image_installs_what_conda_names() -> None:
    """The Dockerfile takes the lines of conda.yaml's pip section by their indentation."""
    (script,) = re.findall(r"sed -n 's/(.*)//p' conda\.yaml", (ROOT / "Dockerfile").read_text())
    lines = (ROOT / "conda.yaml").read_text().splitlines()
    named = [line.removeprefix(script.removeprefix("^")) for line in lines if re.match(script, line)]
    assert by_name(named) == CONDA_PIP


def test_everything_the_image_copies_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    copied = [
        name
        for line in re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
        for name in line.split()
    ]
    let_through = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    assert sorted(copied) == sorted(let_through)
    assert all(Path(name).exists() for name in copied)
