"""Rooms are small: files, functions, and a first sentence that says what a module is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_PER_FILE = 300
LINES_PER_FUNCTION = 60
FILES = sorted(
    file.relative_to(ROOT)
    for folder in ("mlflow_ft", "plugins")
    for file in (ROOT / folder).rglob("*.py")
    if not {"build", ".venv"} & set(file.relative_to(ROOT).parts)
)
MODULES = [file for file in FILES if "tests" not in file.parts]


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), filename=str(file))


def test_files_are_found() -> None:
    assert Path("mlflow_ft/hookspecs.py") in MODULES


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_is_small(file: Path) -> None:
    assert len((ROOT / file).read_text().splitlines()) <= LINES_PER_FILE


@pytest.mark.parametrize("file", FILES, ids=str)
def test_functions_are_small(file: Path) -> None:
    sizes = {
        f"{file}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {place: lines for place, lines in sizes.items() if lines > LINES_PER_FUNCTION} == {}


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_module_opens_with_a_sentence(file: Path) -> None:
    docstring = ast.get_docstring(parse(file))
    assert docstring, "a module's docstring is its first sentence"
    assert docstring.splitlines()[0].strip()


def exported(file: Path) -> Iterator[list[str]]:
    for node in parse(file).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            yield ast.literal_eval(node.value)


def isort_style(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each by name: the order that ruff's RUF022 writes."""
    kind = 0 if re.fullmatch(r"[A-Z][A-Z0-9_]+", name) else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_all_is_sorted(file: Path) -> None:
    for names in exported(file):
        assert names == sorted(set(names), key=isort_style)


def test_the_public_api_is_listed_whole() -> None:
    tree = parse(Path("mlflow_ft/__init__.py"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow_ft")
        for alias in node.names
    }
    [names] = exported(Path("mlflow_ft/__init__.py"))
    assert set(names) == imported


@pytest.mark.parametrize("file", [file for file in MODULES if file.name != "errors.py"], ids=str)
def test_the_words_of_other_libraries_are_shortened_in_one_place(file: Path) -> None:
    """`errors.brief` knows that a first line which ends in a colon says nothing by itself."""
    assert not re.search(r"str\(error\)[^\n]*splitlines\(\)\[", (ROOT / file).read_text())
