"""A new plugin: a complete package with an extension of each kind that was asked for."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow_ft.plugins import Plugins
from mlflow_ft.scaffolding.kinds import KINDS
from mlflow_ft.scaffolding.names import Names, names
from mlflow_ft.scaffolding.rendering import TEMPLATES, check_free, environment, write

PLACES = {
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "conftest.py.j2": "conftest.py",
    "gitignore.j2": ".gitignore",
    "ci.yml.j2": ".github/workflows/tests.yml",
    "test_contract.py.j2": "tests/test_contract.py",
}
"""Where the files go that every plugin has."""
ABOUT = "about.md.j2"
MANY = 8
"""From so many kinds on, a description only counts them."""


@dataclass(frozen=True, kw_only=True)
class NewPlugin:
    """What was written."""

    names: Names
    folder: Path
    kinds: tuple[str, ...]
    files: tuple[str, ...]


def new_plugin(
    distribution: str, kinds: Sequence[str], folder: Path, plugins: Plugins, *, commands: Collection[str] = ()
) -> NewPlugin:
    """Write the package to `folder`, which must not exist or be empty.

    Raises:
        PluginError: the name cannot be used. ConfigError: the folder is not free.
    """
    ordered = tuple(kind for kind in KINDS if kind in kinds)
    check_free(folder)
    wanted = names(distribution, ordered, plugins, commands=commands)
    files = package_files(wanted, ordered)
    write(folder, files)
    return NewPlugin(names=wanted, folder=folder, kinds=ordered, files=tuple(files))


def package_files(wanted: Names, kinds: Sequence[str]) -> dict[str, str]:
    """The content of each file of the package, by its path."""
    values: dict[str, Any] = {
        "name": wanted.distribution,
        "module": wanted.module,
        "slug": wanted.slug,
        "ident": wanted.ident,
        "kinds": kinds,
        "since": _since(),
    }
    modules, tests, abouts = _of_kinds(kinds, values)
    hooks = {file.removesuffix(".py"): hooks_in(text) for file, text in modules.items() if file.endswith(".py")}
    values |= {
        "description": _description(kinds),
        "abouts": abouts,
        "heavy": sorted(f"{module}.py" for module, names in hooks.items() if not names),
        "data": sorted({f"*{Path(file).suffix}" for file in modules if not file.endswith(".py")}),
        "imports": sorted((module, sorted(names)) for module, names in hooks.items() if names),
        "exported": sorted(name for names in hooks.values() for name in names),
    }
    templates = environment("plugin/package")
    files = {place: templates.get_template(name).render(values) for name, place in PLACES.items()}
    files[f"{wanted.module}/__init__.py"] = templates.get_template("init.py.j2").render(values)
    files |= {f"{wanted.module}/{file}": text for file, text in sorted(modules.items())}
    files |= {f"tests/{file}": text for file, text in sorted(tests.items())}
    return files


def _of_kinds(kinds: Sequence[str], values: dict[str, Any]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The modules and the tests of the kinds by file name, and what the README says about each."""
    modules: dict[str, str] = {}
    tests: dict[str, str] = {}
    abouts: list[str] = []
    for kind in kinds:
        templates = environment(f"plugin/kinds/{kind}")
        for template in sorted((TEMPLATES / "plugin" / "kinds" / kind).iterdir()):
            text = templates.get_template(template.name).render(values)
            if template.name == ABOUT:
                abouts.append(text)
            else:
                files = tests if template.name.startswith("test_") else modules
                files[template.name.removesuffix(".j2")] = text
    return modules, tests, abouts


def hooks_in(source: str) -> list[str]:
    """The names of the functions in a module that are decorated with `@hookimpl`."""
    return [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(decorator, ast.Name) and decorator.id == "hookimpl" for decorator in node.decorator_list)
    ]


def _description(kinds: Sequence[str]) -> str:
    words = [kind.replace("-", " ") for kind in kinds]
    listed = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"A plugin for mlflow-ft: {listed}" if len(kinds) < MANY else f"A plugin for mlflow-ft: {len(kinds)} kinds"


def _since() -> str:
    """The requirement on mlflow-ft: from this minor version on; none where it runs from a checkout."""
    try:
        major, minor, *_ = metadata.version("mlflow-ft").split(".")
    except metadata.PackageNotFoundError:
        return ""
    return f">={major}.{minor}"
