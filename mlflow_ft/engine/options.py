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
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init and field.name not in ours}
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
        values[name] = _as_field(text, fields[name], name=f"{section}.options: {name}")
        check_choice(fields[name], values[name], name=f"{section}.options: {name}")
    return values


def check_choice(field: dataclasses.Field[Any], chosen: Any, *, name: str) -> None:
    """Raise ConfigError if a field lists the values that it may have, and this is none of them."""
    known = field.metadata.get("choices")
    if known and chosen is not None and chosen not in list(known):
        raise ConfigError(f"{name}: {chosen!r} is not one of {', '.join(known)}", hint="choose one of them")


def _as_field(text: str, field: dataclasses.Field[Any], *, name: str) -> Any:
    """A value for a field; for one of a numeric type 0 becomes 0.0 if it is not an int, and text is refused.

    For a field of text, words that are true or false in YAML (`no`, `off` ...) stay words.
    """
    found = value(text)
    types = set(re.findall(r"\w+", str(field.type))) - {"class", "typing", "Optional", "Union", "None"}
    if (
        isinstance(found, bool)
        and text.strip().lower() not in ("true", "false")
        and "str" in types
        and "bool" not in types
    ):
        return text.strip()
    if types <= {"int", "float", "bool"} and isinstance(found, str | list | dict):
        wanted = " or ".join(sorted(types))
        raise ConfigError(f"{name} must be {wanted}, not {found!r}", hint="write a number, or true or false for bool")
    return float(found) if "float" in types and not types & {"int", "Any"} and type(found) is int else found


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
