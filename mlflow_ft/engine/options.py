"""`adapter.options` and `objective.options`: further fields of a library's own config class, checked by its fields."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from mlflow_ft.errors import ConfigError, brief


def typed(given: Mapping[str, str] | None, kind: type, *, section: str, ours: Collection[str] = ()) -> dict[str, Any]:
    """The values that were given, as YAML reads them, for the fields of the dataclass `kind`.

    `ours` are fields that other settings fill.

    Raises:
        ConfigError: a name that `kind` does not have, or that is one of `ours`, or text for a number.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind) if field.init}
    fields = {name: annotation for name, annotation in fields.items() if name not in ours}
    found = {}
    for name, text in (given or {}).items():
        if name in ours:
            raise ConfigError(
                f"{section}.options: {name} has its own setting",
                hint="see `mlflow-ft show trainers`, or docs/settings.md, for its name",
            )
        if name not in fields:
            near = difflib.get_close_matches(name, [*fields, *ours], n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are those of {kind.__module__}.{kind.__name__}"
            raise ConfigError(f"{section}.options: {kind.__name__} has no field {name!r}", hint=hint)
        found[name] = _as_field(value(text), fields[name], name=f"{section}.options: {name}")
    return found


def _as_field(given: Any, annotation: str, *, name: str) -> Any:
    """A value for a field of a numeric type: 0 becomes 0.0 where the field takes no int, and text is refused."""
    types = set(re.findall(r"\w+", annotation)) - {"class", "typing", "Optional", "Union", "None"}
    if types <= {"int", "float", "bool"} and isinstance(given, str | list | dict):
        wanted = " or ".join(sorted(types))
        raise ConfigError(f"{name} must be {wanted}, not {given!r}", hint="write a number, or true or false for bool")
    return float(given) if "float" in types and not types & {"int", "Any"} and type(given) is int else given


def value(text: str) -> Any:
    """What the text means: a number, true, a list, a mapping, else the text itself."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(found, str):
        try:
            return float(found)  # 1e-3, which YAML takes for text
        except ValueError:
            return found
    return found


def made(kind: type, values: Mapping[str, Any], *, section: str) -> Any:
    """An object of `kind`.

    Raises:
        ConfigError: the class refuses the values; its own words are told.
    """
    try:
        return kind(**values)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{kind.__name__} rejects the settings: {brief(error)}", hint=f"see {section}") from error
