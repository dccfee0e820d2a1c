"""`adapter.options` and `objective.options`: values for further fields of a library's config class, checked by type."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from mlflow_ft.errors import ConfigError, brief


def typed(
    options: Mapping[str, str] | None,
    kind: type,
    *,
    section: str,
    ours: Collection[str] = (),
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The options, parsed as YAML, as values for fields of the dataclass `kind`.

    `ours` are fields that other settings fill; `elsewhere` says for further ones what to use instead.

    Raises:
        ConfigError: a name is not a field of `kind`, or is one of `ours` or `elsewhere`, or a numeric field gets text.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind) if field.init}
    fields = {name: annotation for name, annotation in fields.items() if name not in ours}
    values = {}
    for name, text in (options or {}).items():
        if elsewhere and name in elsewhere:
            raise ConfigError(f"{section}.options: {name} is not set here", hint=elsewhere[name])
        if name in ours:
            raise ConfigError(
                f"{section}.options: {name} has its own setting",
                hint="see `mlflow-ft show trainers`, or docs/settings.md, for its name",
            )
        if name not in fields:
            near = difflib.get_close_matches(name, [*fields, *ours], n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are those of {kind.__module__}.{kind.__name__}"
            raise ConfigError(f"{section}.options: {kind.__name__} has no field {name!r}", hint=hint)
        values[name] = _as_field(value(text), fields[name], name=f"{section}.options: {name}")
    return values


def _as_field(value: Any, annotation: str, *, name: str) -> Any:
    """A value for a field of a numeric type: 0 becomes 0.0 if the field is not an int, and text is refused."""
    types = set(re.findall(r"\w+", annotation)) - {"class", "typing", "Optional", "Union", "None"}
    if types <= {"int", "float", "bool"} and isinstance(value, str | list | dict):
        wanted = " or ".join(sorted(types))
        raise ConfigError(f"{name} must be {wanted}, not {value!r}", hint="write a number, or true or false for bool")
    return float(value) if "float" in types and not types & {"int", "Any"} and type(value) is int else value


def value(text: str) -> Any:
    """The value of the text: a number, a bool, a list, a mapping, or the text itself."""
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(parsed, str):
        try:
            return float(parsed)  # 1e-3, which is text in YAML
        except ValueError:
            return parsed
    return parsed


def made(kind: type, values: Mapping[str, Any], *, section: str) -> Any:
    """An object of `kind`.

    Raises:
        ConfigError: the class rejects the values, with its own message.
    """
    try:
        return kind(**values)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{kind.__name__} rejects the settings: {brief(error)}", hint=f"see {section}") from error
