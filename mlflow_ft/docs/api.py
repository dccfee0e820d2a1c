"""The page of the public API: every value and record with its fields, every public function of the engine."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mlflow_ft
from mlflow_ft.docs.tables import NOTE, table_row
from mlflow_ft.scaffolding.names import Names
from mlflow_ft.scaffolding.package import package_files

ROOT = Path(__file__).parents[1]
ABOUT = """Everything that `import mlflow_ft` offers, and the public functions of `mlflow_ft.engine`. A plugin needs no
other import, except `mlflow_ft.testing` in its tests. Other modules may change without notice."""
GROUPS = {
    "values": ("Values", "What flows through a run: the arguments of hooks, trainers, evaluators and packagers."),
    "rows": ("Rows", "What converters return and checks see."),
    "records": ("Records", "What the `register_` hooks return; see [hooks](hooks.md)."),
    "candidacy": ("Candidacies", "What gates judge; see [promotion](promotion.md)."),
    "config": (
        "Settings",
        "Frozen pydantic models; every field is in [settings](settings.md) and [promotion](promotion.md).",
    ),
    "errors": ("Errors", "Raised with a message, a `hint`, or several `problems`; printed without a traceback."),
    "hookspecs": ("Hooks", "`@mlflow_ft.hookimpl` marks a function as the implementation of the hook of its name."),
}
"""By the module or package below `mlflow_ft` that has the names: title, and a sentence."""
SHORT = ("config", "errors", "hookspecs")
"""Groups whose names have a line each."""
EXAMPLE_OF = {
    "DataFormat": "format",
    "Check": "check",
    "Trainer": "trainer",
    "Adapter": "adapter",
    "Evaluator": "evaluator",
    "GuardSet": "guard-set",
    "Reward": "reward",
    "Packager": "packager",
    "Exporter": "exporter",
    "Gate": "gate",
    "Launcher": "launcher",
    "PlanRule": "plan-rule",
    "Engine": "engine",
    "ServingEngine": "serving-engine",
    "Options": "options",
    "Command": "command",
}
"""Records, and the kind of `mlflow-ft plugins new` whose code is the example."""
SEEN_IN = {
    "Example": ("DataFormat",),
    "Checked": ("Check",),
    "Trained": ("Trainer", "Packager"),
    "Score": ("Evaluator",),
    "Subject": ("Evaluator",),
    "Answer": ("Evaluator",),
    "Form": ("Exporter", "ServingEngine"),
    "Serving": ("ServingEngine",),
    "ServedModel": ("ServingEngine",),
    "Launch": ("Launcher",),
    "Machines": ("Engine",),
    "Situation": ("PlanRule",),
    "Advice": ("PlanRule",),
    "Verdict": ("Gate",),
    "Candidacy": ("Gate",),
    "Contender": ("Gate",),
}
"""Values, and the records whose examples use them."""
MADE_WITH = "glossary"
OF_EVERY_RECORD = {"name": "Unique among the records of its kind.", "summary": "In a few words, for lists."}
"""What these fields mean if no text below them says more."""
EMPTY = {"field(default_factory=dict)": "{}", "field(default_factory=tuple)": "()", "field(default_factory=list)": "[]"}


def api_page() -> str:
    """Every public name by group, then the engine."""
    parts = ["# The public API", NOTE, ABOUT]
    for group, (title, about) in GROUPS.items():
        names = [name for name in mlflow_ft.__all__ if _module(name).partition(".")[2].partition(".")[0] == group]
        parts += [f"## {title}", about]
        if group in SHORT:
            parts.append("\n".join(f"- `{name}`: {_first(name)}" for name in names if _first(name)))
        else:
            parts += [part for name in names for part in _described(name)]
    return "\n\n".join(part for part in [*parts, *_engine()] if part) + "\n"


def _module(name: str) -> str:
    """The module that defines a public name; an alias of a type is in `rows`."""
    module = str(getattr(getattr(mlflow_ft, name), "__module__", ""))
    return (
        module if module.startswith("mlflow_ft.") else "mlflow_ft.hookspecs" if name == "hookimpl" else "mlflow_ft.rows"
    )


def _first(name: str) -> str:
    return " ".join((inspect.getdoc(getattr(mlflow_ft, name)) or "").partition("\n\n")[0].split())


def _described(name: str) -> Iterator[str]:
    tree = ast.parse(Path(importlib.import_module(_module(name)).__file__ or "").read_text(encoding="utf-8"))
    yield f"### {name}"
    if records := SEEN_IN.get(name):
        links = " and ".join(f"[{record}](api.md#{record.lower()})" for record in records)
        yield f"In use: the example of {links}."
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield ast.get_docstring(node) or ""
            yield _table(node)
            yield from _example(name)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            yield f"`{name} = {ast.unparse(node.value)}`"
            yield _string(following)


def _example(record: str) -> Iterator[str]:
    """The module that `mlflow-ft plugins new` writes for a kind of record: its tests run there."""
    kind = EXAMPLE_OF.get(record)
    if kind is None:
        return
    names = Names(distribution=MADE_WITH)
    files = {
        file.removeprefix(f"{names.module}/"): text
        for file, text in package_files(names, [kind]).items()
        if file.startswith(f"{names.module}/") and file.endswith(".py") and not file.endswith("__init__.py")
    }
    yield f"A whole example, as `mlflow-ft plugins new {MADE_WITH} --kind {kind}` writes it with its tests:"
    for file, text in sorted(files.items(), key=lambda item: "hookimpl" not in item[1]):
        shown = f"# {names.module}/{file}\n{text.rstrip()}"
        yield f"```python\n{shown}\n```"


def _table(node: ast.ClassDef) -> str:
    """The fields and methods of a class, each with the text below it."""
    rows = []
    for member, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            default = ast.unparse(member.value) if member.value else ""
            default = EMPTY.get(default, default)
            shown = f" = {default}" if default and not default.startswith("field(") else ""
            text = _string(following) or (OF_EVERY_RECORD.get(member.target.id, "") if node.name in EXAMPLE_OF else "")
            rows.append((f"`{member.target.id}: {ast.unparse(member.annotation)}{shown}`", text))
        elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            rows.append((f"`{_signature(member)}`", ast.get_docstring(member) or ""))
    lines = [table_row(cell, " ".join(text.split())) for cell, text in rows if not cell.startswith("`_")]
    return "\n".join([table_row("member", "meaning"), "|---|---|", *lines]) if lines else ""


def _signature(function: ast.FunctionDef) -> str:
    """`name: type` of a property, else the name with its arguments and result."""
    returns = ast.unparse(function.returns) if function.returns else "None"
    if any("property" in ast.unparse(decorator) for decorator in function.decorator_list):
        return f"{function.name}: {returns}"
    arguments = ast.unparse(function.args).removeprefix("self, ").removeprefix("self").removeprefix("cls, ")
    return f"{function.name}({arguments}) -> {returns}"


def _string(node: ast.stmt | None) -> str:
    text = node.value if isinstance(node, ast.Expr) else None
    return inspect.cleandoc(str(text.value)) if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""


def _engine() -> Iterator[str]:
    yield "## The engine"
    yield textwrap.dedent(
        """\
        Import these modules inside functions: they import torch.

        ```python
        from mlflow_ft.engine import sft
        ```"""
    )
    for module, names in _public().items():
        tree = ast.parse((ROOT / "engine" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        yield f"### mlflow_ft.engine.{module.rpartition('.')[2]}"
        yield (ast.get_docstring(tree) or "").partition("\n")[0]
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for name in names:
            yield f"#### {name}"
            yield f"```python\n{_signature(functions[name])}\n```"
            yield ast.get_docstring(functions[name]) or ""


def _public() -> dict[str, tuple[str, ...]]:
    """`mlflow_ft.engine.PUBLIC`, read without importing what the engine imports."""
    for node in ast.parse((ROOT / "engine" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "PUBLIC" and node.value:
            public: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return public
    raise LookupError("mlflow_ft/engine/__init__.py has no PUBLIC")
