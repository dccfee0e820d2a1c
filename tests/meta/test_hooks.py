"""Every hook says when it is called, is documented, and is used by a built-in or by a plugin in plugins/."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pluggy
import pytest

from mlflow_ft import hookspecs

ROOT = Path(__file__).parents[2]
RULES = ("register_", "detect_", "before_", "after_", "on_")
COLLECTORS = {"training_callbacks"}


def specified() -> dict[str, str]:
    """Every hook, with its docstring."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return {name: getattr(hookspecs, name).__doc__ or "" for name in sorted(vars(manager.hook)) if name[0] != "_"}


HOOKS = specified()


def implementations() -> Iterator[tuple[str, str]]:
    """The hook's name and the place, of every function under a `hookimpl`."""
    packages = [ROOT / "mlflow_ft" / "builtin", *(ROOT / "plugins").glob("*/*/")]
    for file in (file for package in packages if package.name != "tests" for file in sorted(package.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    yield from ((name, f"{file}:{node.lineno}") for name in _implemented(node.name, decorator))


def _implemented(function: str, decorator: ast.expr) -> Iterator[str]:
    call = decorator if isinstance(decorator, ast.Call) else None
    marker = call.func if call else decorator
    if ast.unparse(marker).rpartition(".")[2] == "hookimpl":
        named = [keyword.value for keyword in call.keywords if keyword.arg == "specname"] if call else []
        yield str(ast.literal_eval(named[0])) if named else function


def test_hooks_are_found() -> None:
    assert {"register_formats", "training_callbacks"} <= set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_says_when_it_is_called(hook: str) -> None:
    assert "Called" in HOOKS[hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_name_gives_the_rule(hook: str) -> None:
    assert hook.startswith(RULES) or hook in COLLECTORS


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented(hook: str) -> None:
    assert re.search(rf"`{hook}\b", (ROOT / "docs" / "hooks.md").read_text())


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_used(hook: str) -> None:
    """A hook is added only together with a plugin that uses it."""
    assert hook in {name for name, _ in implementations()}


def test_every_implementation_has_a_hook() -> None:
    assert [f"{place}: {name}" for name, place in implementations() if name not in HOOKS] == []
