"""A plugin is light to import, its hooks are well formed, and it loads without harm to others."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, cast

from mlflow_ft import hookspecs, plugins
from mlflow_ft.errors import FineTuneError
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import Record
from mlflow_ft.registry import Registry

HEAVY = (
    *("accelerate", "bitsandbytes", "datasets", "mlflow", "numpy", "pandas", "peft", "pydantic", "ray", "tensorflow"),
    *("torch", "transformers", "trl", "unsloth", "vllm"),
)
MARK = f"{hookspecs.PROJECT}_impl"
IMPORT = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
for name, member in list(vars(module).items()):
    if name.startswith("register_") and hasattr(member, sys.argv[2]):
        list(member())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A plugin, as it was loaded alone beside the built-ins."""

    module: ModuleType
    name: str
    plugins: Plugins
    registry: Registry
    installed: bool

    def records(self, kind: type[RecordT]) -> list[RecordT]:
        """Its records of a kind."""
        own = [registered.record for registered in self.plugins.registered if registered.provider == self.name]
        return [cast("RecordT", record) for record in own if isinstance(record, kind)]


def hooks(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions of a module that are marked as hooks."""
    for name, member in vars(module).items():
        if callable(member) and hasattr(member, MARK):
            yield name, member


def check_import(module: ModuleType) -> None:
    """Neither the module nor its `register_` hooks import what takes seconds: every command loads all plugins."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, module.__name__, MARK],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{module.__name__} cannot be imported in a process of its own:\n{done.stderr}"
    heavy = sorted(set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1])))
    assert not heavy, (
        f"{module.__name__} imports {', '.join(heavy)}, which takes every command seconds: "
        "import it inside the functions that need it"
    )


def check_parameters(module: ModuleType) -> None:
    """No parameter of a hook has a default: pluggy does not pass such a parameter."""
    for name, function in hooks(module):
        wrong = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        ]
        assert not wrong, f"{name}: the parameter {wrong[0]} has a default, so pluggy never passes it; remove it"


def load(module: ModuleType) -> Loaded:
    """Load it with MLFLOW_FT_STRICT, alone beside the built-ins, and look up all names."""
    info = next((info for info in plugins.load({}).infos if info.module == module.__name__), None)
    loaded, name = Plugins(), module.__name__
    try:
        if info:
            name = info.name
            loaded = plugins.load({"MLFLOW_FT_PLUGINS": name, "MLFLOW_FT_STRICT": "1"})
        else:
            loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
            loaded.add(module, name=name)
        registry = Registry(loaded)
    except FineTuneError as error:
        raise AssertionError(f"{module.__name__} does not load under MLFLOW_FT_STRICT: {error}") from error
    state = next(info for info in loaded.infos if info.name == name)
    assert state.status == "active", f"{name} is {state.status}: {state.error}"
    assert any(True for _ in hooks(module)), f"{module.__name__} has no hook: decorate functions with @hookimpl"
    return Loaded(module=module, name=name, plugins=loaded, registry=registry, installed=info is not None)
