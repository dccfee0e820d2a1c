"""The files that are generated from the code: pages of docs/, kubernetes/MLproject. `python -m mlflow_ft.docs`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mlflow_ft import hookspecs, plugins
from mlflow_ft.config import PRIMARY, Config, describe
from mlflow_ft.docs.api import api_page
from mlflow_ft.docs.importing import importing_page
from mlflow_ft.docs.kubernetes import kubernetes_project
from mlflow_ft.docs.methods import methods_page
from mlflow_ft.docs.plan import plan_page
from mlflow_ft.docs.tables import NOTE, table_row

ROOT = Path(__file__).parents[2]
ABOUT_HOOKS = """A plugin is a module with functions that are decorated with `@mlflow_ft.hookimpl` and named as below.
A function names the arguments it needs. How to make and install a plugin: [plugins](plugins.md)."""
ABOUT_SETTINGS = """Give a setting on the command line (`--training.learning_rate 1e-4`), under `mlflow run`
(`-P training.learning_rate=1e-4`), or in the YAML file that `--config` names. Later layers win: default, method,
settings for the built-in data (if no other data is named), YAML, command line. The last part of a name is enough
if it is unique (`--learning_rate 1e-4`). Each [method](methods.md) has its own defaults. In YAML, anchors and merge
keys (`<<: *usual`) are read; anchors may be kept under keys that begin with `x-`."""
RULES = {
    "register_": "Collected from every plugin when the program starts; must be cheap, pure, without heavy imports. "
    "If it raises, its plugin is listed as broken and left out completely.",
    "detect_": 'Asked in turn until one plugin answers; None is "not mine". If it raises, the run stops.',
    "before_": "May veto by raising `FineTuneError`; the run stops before anything is spent.",
    "after_": "Watches only: what it raises is logged with the plugin's name, and the run goes on.",
    "on_": "Watches only: what it raises is logged with the plugin's name, and the run goes on.",
    "training_callbacks": "Collected from every plugin. If it raises, the run stops.",
}
"""By the beginning of a hook's name, its rule."""
RULE = "|---|---|---|---|"


def _places() -> Iterator[tuple[str, str]]:
    """Where to look for an implementation to show, in this order; a plugin is a module or a package."""
    yield "The template", "plugins/mlflow-ft-template/mlflow_ft_template/__init__.py"
    for module in plugins.BUILTIN:
        kind = module.rpartition(".")[2]
        package = f"mlflow_ft/builtin/{kind}/__init__.py"
        yield "The built-in plugin", package if (ROOT / package).is_file() else f"mlflow_ft/builtin/{kind}.py"


def hooks() -> dict[str, Callable[..., Any]]:
    """Every hook by name, in the order of `hookspecs.py`."""
    marker = f"{hookspecs.PROJECT}_spec"
    return {name: function for name, function in vars(hookspecs).items() if hasattr(function, marker)}


def hooks_page() -> str:
    """Every hook: when it is called, its rule, and how the template (or a built-in) implements it."""
    parts = [
        "# Hooks",
        NOTE,
        ABOUT_HOOKS,
        "| hook | rule |\n|---|---|\n" + "\n".join(f"| [`{name}`](#{name}) | {rule(name)} |" for name in hooks()),
    ]
    for name, function in hooks().items():
        title, code = implementation(name)
        parts += [
            f"## {name}",
            f"`{signature(function)}`",
            inspect.getdoc(function) or "",
            f"{title}:",
            f"```python\n{code}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def rule(hook: str) -> str:
    """The rule for a hook, by its name."""
    return next(text for verb, text in RULES.items() if hook.startswith(verb))


def signature(function: Callable[..., Any]) -> str:
    """`name(argument: type) -> type`, as written in the code."""
    parts = inspect.signature(function)
    arguments = ", ".join(f"{name}: {parameter.annotation}" for name, parameter in parts.parameters.items())
    return f"{function.__name__}({arguments}) -> {parts.return_annotation}"


def implementation(hook: str) -> tuple[str, str]:
    """Who implements the hook (the template, else a built-in), and the source of the function."""
    for title, file in _places():
        source = (ROOT / file).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name == hook:
                return f"{title} (`{file}`)", "@hookimpl\n" + (ast.get_source_segment(source, node) or "")
    raise LookupError(f"no plugin in this repository implements {hook}")


def settings_page() -> str:
    """Every setting by section: what it takes, its default, what it means."""
    primary = ", ".join(f"`--{section} X` is `--{section}.{field} X`" for section, field in PRIMARY.items())
    parts = [
        "# Settings",
        NOTE,
        ABOUT_SETTINGS,
        f"A section name alone stands for one of its fields: {primary}.",
    ]
    rows: dict[str, list[str]] = {}
    for path, kind, default, doc in describe():
        cells = f"`{path}`", kind, f"`{default}`", doc
        rows.setdefault(path.partition(".")[0], []).append(table_row(*cells))
    for section, lines in rows.items():
        about = inspect.getdoc(Config.model_fields[section].annotation) or ""
        parts += [
            f"## {section}",
            about,
            "\n".join([table_row("setting", "takes", "default", "meaning"), RULE, *lines]),
        ]
    return "\n\n".join(parts) + "\n"


PAGES = {
    "hooks.md": hooks_page,
    "settings.md": settings_page,
    "methods.md": methods_page,
    "plan.md": plan_page,
    "api.md": api_page,
    "importing.md": importing_page,
}
"""File in docs/ -> the function that makes it."""


def main(root: Path = ROOT) -> None:
    """Write every page and kubernetes/MLproject; this works only in a checkout."""
    files = {root / "docs" / name: make for name, make in PAGES.items()}
    for file, make in {**files, root / "kubernetes" / "MLproject": kubernetes_project}.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(make(), encoding="utf-8")
        click.echo(file)
