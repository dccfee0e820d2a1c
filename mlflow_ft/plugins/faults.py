"""What is wrong with a plugin, in one line: the reason, the place in its source, and what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from mlflow_ft.errors import brief

API = 1
"""The version of the hooks and records. A plugin may name the one it was written for: `MLFLOW_FT_API = 1`."""
OLDEST_API = 1
OURS = str(Path(__file__).parents[1])


class UnsuitableError(Exception):
    """A plugin cannot work with this version, or would not be called as its author expects."""


def sentence(error: BaseException, *, hooks: Mapping[str, Sequence[str]]) -> str:
    """Why a plugin cannot be loaded; `hooks` has the names of all hooks and of their arguments."""
    said = str(error) if isinstance(error, UnsuitableError) else brief(error, with_type=True)
    if isinstance(error, pluggy.PluginValidationError):
        return said + _meant(str(error), hooks)
    return said + place(error)


def place(error: BaseException) -> str:
    """` (FILE line N)`, where a plugin's code raised the error; "" if it did not, or where the file is said already."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename} line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _foreign(frame.filename)]
    return f" ({frames[-1].filename} line {frames[-1].lineno})" if frames else ""


def _foreign(file: str) -> bool:
    return not file.startswith(("<", OURS)) and "/importlib/" not in file and "/pluggy/" not in file


def _meant(message: str, hooks: Mapping[str, Sequence[str]]) -> str:
    """What a misspelt hook or argument was probably meant to be."""
    if (found := re.search(r"unknown hook '(\w+)'", message)) and (near := _near(found[1], hooks)):
        return f"; did you mean {near}?"
    found = re.search(r"for hook '(\w+)'(?:.*Argument\(s\) \{(.*?)\})?", message, re.DOTALL)
    if found and found[1] in hooks:
        wrong = ", ".join(re.findall(r"'(\w+)'", found[2] or ""))
        return f": {wrong or 'an argument'} is not one of its arguments: {', '.join(hooks[found[1]]) or 'it has none'}"
    return ""


def _near(name: str, known: Mapping[str, Any]) -> str:
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def check(module: ModuleType, implementations: Sequence[pluggy.HookImpl]) -> None:
    """Refuse what pluggy accepts and then calls otherwise than its author expects, and other versions of the API.

    Raises:
        UnsuitableError: it was made for another version, or a hook has a default or is a wrapper.
    """
    version = getattr(module, "MLFLOW_FT_API", API)
    if not isinstance(version, int) or not OLDEST_API <= version <= API:
        needed = "mlflow-ft" if isinstance(version, int) and version > API else "the plugin"
        raise UnsuitableError(
            f"it was made for version {version!r} of the plugin API; this mlflow-ft has {API}: update {needed}"
        )
    for implementation in implementations:
        hook = implementation.function.__name__
        if implementation.hookwrapper or implementation.wrapper:
            raise UnsuitableError(f"{hook} is a wrapper; hooks of mlflow-ft are plain functions")
        for parameter in inspect.signature(implementation.function).parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                raise UnsuitableError(
                    f"{hook}: the parameter {parameter.name} has a default, so it would never be passed; remove "
                    "the default"
                )


def slow(seconds: float) -> str:
    """A note on a plugin that takes long to load; "" for others."""
    if seconds < 1:
        return ""
    return f"takes {seconds:.1f} s to import, which every command waits for: import heavy packages inside functions"
