"""Reads a search space: from a YAML file, and from the usual values that records name.

training.learning_rate: 5e-5 to 5e-4           # on a log scale, because the upper bound is at least ten times the lower
adapter.r: [8, 16, 32]
adapter.lora_alpha: r to 2r
adapter.lora_dropout: {min: 0, max: 0.1, step: 0.05}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mlflow_ft.config.explain import FIELDS, allowed, locate, members, shown, unknown
from mlflow_ft.config.given import Given, raise_all, read_yaml
from mlflow_ft.config.space import Dimension, Space
from mlflow_ft.errors import ConfigError, Problem

WORDS = ("min", "max", "log", "step", "choices")
EXAMPLE = "write 1e-5 to 1e-3, [8, 16, 32], or {min: 0, max: 0.1, step: 0.05}; see docs/sweep.md"
ALPHA = "adapter.lora_alpha"
"""Its bounds may be multiples of the rank: `r to 2r`."""
RANGE = re.compile(r"(?P<low>[^\s,;()]+) to (?P<high>[^\s,;()]+)")
MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)?r")
LOG_FROM = 10
"""A range whose upper bound is this many times the lower one is searched on a log scale, unless `log` is given."""
SAME_COMPARISON = (
    *("run.", "launch.", "data.", "checks.", "evaluation.", "package.", "registry."),
    *("model.name", "model.revision", "model.add_tokens", "model.pad_token", "model.trust_remote_code"),
    *("rollout.reward_funcs", "rollout.reward_weights", "rollout.reward_model"),
    *("training.eval_steps", "training.logging_steps", "training.log_checkpoints"),
    *("training.save_steps", "training.save_total_limit", "training.upload_checkpoints"),
)
"""Settings that decide how trials are compared, or do not change the model: they are the same in all trials."""


def read_space(file: Path) -> Space:
    """The space in a YAML file.

    Raises:
        ConfigError: it cannot be read, is empty, names an unknown setting or one that trials must share, or has
        impossible bounds; all problems are reported together.
    """
    problems: list[Problem] = []
    dimensions: dict[str, Dimension] = {}
    for given in _grouped(read_yaml(file)):
        try:
            dimension = _dimension(given)
        except _WrongError as wrong:
            place = f"{given.place}  {given.key}"
            problems.append(Problem(place=place, message=wrong.message, hint=wrong.hint))
            continue
        if dimension.path in dimensions:
            message = f"{dimension.path} is already given at {dimensions[dimension.path].place}"
            problems.append(Problem(place=given.place, message=message, hint="keep one of them"))
        dimensions[dimension.path] = dimension
    raise_all(problems, f"in the space {file}")
    if not dimensions:
        raise ConfigError(f"the space {file} is empty", hint=f"name the settings to search: {EXAMPLE}")
    return tuple(dimensions.values())


def usual_range(path: str, text: str, *, adapter: bool, place: str) -> Dimension | None:
    """The dimension that a record's usual values describe (`5e-5 to 5e-4`); None if they are not a range of numbers.

    Where they differ, `adapter` decides: `1e-6 to 5e-6 for all weights, 1e-5 to 1e-4 with an adapter`.
    """
    parts = [part.strip() for part in text.split(", ")]
    wanted = "with an adapter" if adapter else "for all weights"
    part = next((part.removesuffix(wanted) for part in parts if part.endswith(wanted)), text)
    if path not in FIELDS or not (bounds := RANGE.match(part)):
        return None
    try:
        return _between(path, place, bounds["low"], bounds["high"])
    except _WrongError:
        return None


class _WrongError(Exception):
    """Why a dimension is refused."""

    def __init__(self, message: str, hint: str = EXAMPLE) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def _grouped(given: Sequence[Given]) -> list[Given]:
    """The dimensions of a file: `learning_rate: {min: 1}` was read as a section `learning_rate` with a field `min`."""
    dimensions: dict[str, Given] = {}
    for setting in given:
        name, _, word = setting.key.rpartition(".")
        if word in WORDS and locate(name):
            written = setting.value if setting.written is None else setting.written
            before = dimensions.get(name, Given(key=name, value={}, place=setting.place))
            dimensions[name] = replace(before, value={**before.value, word: written})
        else:
            dimensions[setting.key] = setting
    return list(dimensions.values())


def _dimension(given: Given) -> Dimension:
    paths = locate(given.key)
    if len(paths) != 1:
        raise _WrongError(*unknown(given.key))
    path = paths[0]
    if path.startswith(SAME_COMPARISON):
        raise _WrongError("must be the same in all trials", f"set it for the whole sweep: --{path} VALUE")
    if isinstance(given.value, list):
        return _among(path, given.place, given.value)
    if isinstance(given.value, Mapping):
        return _described(path, given.place, given.value)
    if bounds := RANGE.fullmatch(str(given.value).strip()):
        return _between(path, given.place, bounds["low"], bounds["high"])
    raise _WrongError(f"{shown(given.value)} is one value, not a range or a list")


def _described(path: str, place: str, words: Mapping[Any, Any]) -> Dimension:
    wrong = [str(word) for word in words if word not in WORDS]
    if wrong:
        raise _WrongError(f"{wrong[0]} is not one of {', '.join(WORDS)}")
    if "choices" in words:
        if len(words) > 1:
            raise _WrongError("has choices and bounds", "keep one of them")
        choices = words["choices"]
        return _among(path, place, yaml.safe_load(choices) if isinstance(choices, str) else choices)
    if "min" not in words or "max" not in words:
        raise _WrongError("needs both min and max")
    dimension = _between(path, place, words["min"], words["max"])
    if "log" in words:
        log = _truth(words["log"])
        if log and dimension.low <= 0:
            raise _WrongError(f"a log scale needs a min above 0, not {dimension.low:g}", "leave log out")
        dimension = replace(dimension, log=log)
    if "step" in words:
        if "log" in words and dimension.log:
            raise _WrongError("has both log and step", "keep one of them")
        dimension = replace(dimension, step=_step(words["step"]), log=False)
    if dimension.whole and dimension.step and not dimension.step.is_integer():
        raise _WrongError(f"step {dimension.step:g} is not a whole number", "this setting takes whole numbers")
    return dimension


def _among(path: str, place: str, choices: Any) -> Dimension:
    if not isinstance(choices, list) or not choices:
        raise _WrongError("has no choices")
    if any(isinstance(choice, list | dict) for choice in choices):
        raise _WrongError("a choice must be one value", 'write a list as text: "[q_proj, v_proj]"')
    values = tuple(dict.fromkeys(_number(path, choice) for choice in choices))
    if len(values) != len(choices):
        raise _WrongError("names a choice twice", "keep one of them")
    return Dimension(path=path, place=place, choices=values)


def _number(path: str, choice: Any) -> Any:
    """A choice as a number where it is text that the setting takes as a number: YAML reads `1e-4` as text."""
    if isinstance(choice, str) and {int, float} & set(members(FIELDS[path])):
        try:
            return float(choice)
        except ValueError:
            return choice
    return choice


def _between(path: str, place: str, low: Any, high: Any) -> Dimension:
    of_rank = path == ALPHA and all(MULTIPLE.fullmatch(str(bound)) for bound in (low, high))
    if not of_rank and not {int, float} & set(members(FIELDS[path])):
        raise _WrongError(f"takes {allowed(FIELDS[path])}, not numbers", "name the choices in a list: [a, b]")
    least, most = (_bound(bound, of_rank=of_rank) for bound in (low, high))
    if least > most:
        raise _WrongError(f"min {low} is above max {high}", "swap them")
    if least == most:
        raise _WrongError(f"min and max are both {low}", f"set it for the whole sweep: --{path} {low}")
    log = not of_rank and least > 0 and most / least >= LOG_FROM
    dimension = Dimension(path=path, place=place, low=least, high=most, log=log, of_rank=of_rank)
    if dimension.whole and not (least.is_integer() and most.is_integer()):
        raise _WrongError(f"{low} to {high}: this setting takes whole numbers", "round the bounds")
    return dimension


def _bound(text: Any, *, of_rank: bool) -> float:
    if of_rank and (multiple := MULTIPLE.fullmatch(str(text))):
        return float(multiple[1] or 1)
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise _WrongError(f"{shown(text)} is not a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise _WrongError(f"{shown(text)} is not a finite number")
    return number


def _step(text: Any) -> float:
    step = _bound(text, of_rank=False)
    if step <= 0:
        raise _WrongError(f"step {text} is not above 0")
    return step


def _truth(text: Any) -> bool:
    if str(text).lower() not in ("true", "false"):
        raise _WrongError(f"log takes true or false, not {shown(text)}")
    return str(text).lower() == "true"
