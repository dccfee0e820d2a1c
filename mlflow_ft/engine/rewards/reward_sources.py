"""Find reward functions by file, dotted name or plugin, and the source file of each."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.hashes import file_hash
from mlflow_ft.registry import Registry

Function = Callable[..., Any]
WAYS = "write FILE.py:function, package.module.function, or a name that `mlflow-ft show rewards` lists"


@dataclass(frozen=True, kw_only=True)
class NamedFunction:
    """A reward function with its name in metrics and tables."""

    name: str
    asked: str
    """The name that the user wrote."""
    function: Function
    provider: str = ""
    """The plugin that registered it; "" for a file or a dotted name."""

    @cached_property
    def source(self) -> Path | None:
        """The file that defines it, if there is one."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.function))
        except TypeError:  # a callable object, or a function without Python code
            file = inspect.getsourcefile(type(self.function)) if not inspect.isbuiltin(self.function) else None
        return Path(file) if file else None

    @cached_property
    def sha256(self) -> str:
        """Hash of the file that defines it; "" if there is none."""
        return file_hash(self.source) if self.source else ""


def find(names: Sequence[str], registry: Registry) -> list[NamedFunction]:
    """Every named function, each with a unique name.

    Raises:
        ConfigError: there is no such file, module or function, it takes no completions, or it is named twice.
    """
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ConfigError(
            f"rollout.reward_funcs names {twice} twice", hint="name it once, and set its weight in reward_weights"
        )
    shorts = [short(name) for name in names]
    functions = []
    for asked, name in zip(names, shorts, strict=True):
        registered = asked in registry.rewards
        named = NamedFunction(
            name=name if shorts.count(name) == 1 else full(asked),
            asked=asked,
            function=function(asked, registry),
            provider=registry.rewards.provider(asked) if registered else "",
        )
        check(named)
        functions.append(named)
    return functions


def short(name: str) -> str:
    """The name in metrics: the function's own."""
    return name.rpartition(":")[2] if ":" in name else name.rpartition(".")[2]


def full(name: str) -> str:
    """A name for one of several functions with the same name: its file or module, then its own name."""
    place, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    return f"{Path(place).with_suffix('')}.{attribute}".strip("/.").replace("/", ".") if place else attribute


def parameters(function: Function) -> dict[str, inspect.Parameter] | None:
    """A function's parameters by name; None if it takes any keyword, or has no signature."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if anything else parameters


def check(named: NamedFunction) -> None:
    """Raise ConfigError if a function cannot be a reward function because it has no argument `completions`."""
    takes = parameters(named.function)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if takes is None or ("completions" in takes and takes["completions"].kind in by_name):
        return
    raise ConfigError(
        f"rollout.reward_funcs: {named.asked} is called with `completions` by name, but takes "
        f"{', '.join(takes) or 'nothing'}",
        hint="write def NAME(completions, **columns), and return a number for each completion",
    )


def function(name: str, registry: Registry) -> Function:
    """The function of this name: `FILE.py:function`, `package.module.function`, or a registered one.

    Raises:
        ConfigError: there is no such file, module or function.
    """
    if name in registry.rewards:
        return registry.rewards[name].score
    if name.endswith(".py"):
        raise ConfigError(f"rollout.reward_funcs: {name} does not name a function", hint=f"write {name}:FUNCTION")
    if ":" not in name and "." not in name:
        registry.rewards[name]  # raises an error with the known names
    place, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    module = _from_file(place) if place.endswith(".py") else _from_module(name, place)
    value = getattr(module, attribute, None)
    if not callable(value):
        own = [key for key, item in vars(module).items() if inspect.isfunction(item) and not key.startswith("_")]
        raise ConfigError(
            f"rollout.reward_funcs: {place} has no function {attribute!r}",
            hint=f"it has {', '.join(sorted(own)) or 'none'}",
        )
    result: Function = value
    return result


def _from_module(name: str, place: str) -> Any:
    try:
        with importable(Path.cwd()):
            return importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        hint = f"looked in {Path.cwd()} and among the installed packages; {WAYS}"
        raise _cannot_load(name, error, hint=hint) from error


def _from_file(place: str) -> Any:
    """The module in a file, executed once for each content of the file."""
    file = Path(place).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(
            f"rollout.reward_funcs: there is no file {file}",
            hint=f"relative paths start at the working folder, {Path.cwd()}; under `mlflow run` that is the "
            "project's folder: give an absolute path",
        )
    digest = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()
    name = f"mlflow_ft_reward_{file.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with importable(file.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything when it is executed
        del sys.modules[name]
        raise _cannot_load(place, error, hint=f"it was read from {file}") from error
    return module


def _cannot_load(name: str, error: BaseException, *, hint: str) -> ConfigError:
    return ConfigError(f"rollout.reward_funcs: {name} cannot be loaded: {brief(error, with_type=True)}", hint=hint)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the modules in a folder importable, as Python does for a script in it; what they print goes to stderr."""
    sys.path.insert(0, str(folder))
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
