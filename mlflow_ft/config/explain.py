"""The configuration for people: hints, refusals, the table of all fields, the resolved YAML."""

from __future__ import annotations

import datetime
import difflib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mlflow_ft.config.schema import PRIMARY, Config
from mlflow_ft.config.section import Section
from mlflow_ft.config.synonyms import SYNONYMS

SECTIONS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""Every section by name, in the schema's order."""

FIELDS: Mapping[str, FieldInfo] = {
    f"{name}.{leaf}": field for name, section in SECTIONS.items() for leaf, field in section.model_fields.items()
}
"""Every field by full path, in the schema's order."""


class Schema(NamedTuple):
    """What can be set: the core's sections and fields, and those of plugins' options."""

    sections: Mapping[str, type[Section]]
    fields: Mapping[str, FieldInfo]


CORE = Schema(SECTIONS, FIELDS)
OF_PLUGINS = "plugins"
"""The section whose subsections are the options of plugins."""

NONE_WORDS = frozenset({"none", "null"})
"""Unquoted, these words mean None wherever None is allowed."""

SHOWN_CHARACTERS = 60


class Described(NamedTuple):
    """One row of the table of all fields."""

    path: str
    type: str
    default: str
    doc: str


def describe(schema: Schema = CORE) -> list[Described]:
    """Every field: full path, what it takes, its default as typed, what it means."""
    return [
        Described(path, allowed(field), _typed(field.get_default(call_default_factory=True)), field.description or "")
        for path, field in schema.fields.items()
    ]


def locate(key: str, schema: Schema = CORE) -> list[str]:
    """The full paths that `key` may mean: one when it is good, several when ambiguous, none when unknown.

    An option of a plugin is named by its full path only: a plugin that is installed makes no other key ambiguous.
    """
    if key in schema.fields:
        return [key]
    if key in PRIMARY:
        return [f"{key}.{PRIMARY[key]}"]
    return [path for path in FIELDS if path.partition(".")[2] == key]


def unknown(key: str, schema: Schema = CORE) -> tuple[str, str]:
    """Message and hint for a key that means no field, or more than one."""
    if paths := locate(key, schema):
        return "ambiguous key", f"write {' or '.join(paths)}"
    if key in schema.sections:
        return "a section, not a field", _fields_of(key, schema)
    if key.startswith(f"{OF_PLUGINS}."):
        return _unknown_option(key, schema)
    return "unknown key", _nearest(key.lower())


def _unknown_option(key: str, schema: Schema) -> tuple[str, str]:
    """An option that no plugin has."""
    section, _, leaf = key.rpartition(".")
    if section in schema.sections and section != OF_PLUGINS:
        near = _close(leaf, schema.sections[section].model_fields)
        return "unknown key", _did_you_mean([f"{section}.{near}"]) if near else _fields_of(section, schema)
    sections = [name for name in schema.sections if name.startswith(f"{OF_PLUGINS}.")]
    near = _close(section if section != OF_PLUGINS else key, sections)
    known = f"known: {', '.join(sections)}" if sections else "no active plugin has options"
    named = (section if section != OF_PLUGINS else key).removeprefix(f"{OF_PLUGINS}.")
    return (
        f"no active plugin has options named {named}",
        _did_you_mean([near]) if near else f"{known}; `mlflow-ft plugins` lists the plugins and their status",
    )


def _nearest(key: str) -> str:
    section, _, leaf = key.rpartition(".")
    section = _close(section, SECTIONS) or ""
    names = _names()
    for name in (key, _close(leaf, [*names, *SECTIONS])):
        if name in names:
            paths = names[name]
            return _did_you_mean([path for path in paths if path.startswith(f"{section}.")] or paths)
        if name and name in SECTIONS:
            return _fields_of(name)
    return _fields_of(section) if section else f"sections: {', '.join(SECTIONS)}"


def _names() -> dict[str, list[str]]:
    """Every name that the user may have meant, and its paths."""
    names = {path.partition(".")[2]: locate(path.partition(".")[2]) for path in FIELDS}
    names |= {section: locate(section) for section in PRIMARY}
    return names | {synonym: [path] for synonym, path in SYNONYMS.items()}


def _close(name: str, known: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _did_you_mean(names: Collection[str]) -> str:
    return f"did you mean {' or '.join(names)}?"


def _fields_of(section: str, schema: Schema = CORE) -> str:
    return f"{section} has {', '.join(schema.sections[section].model_fields)}"


def refused(path: str, value: Any, error: ValidationError, field: FieldInfo) -> tuple[str, str] | None:
    """Message and hint for the value that pydantic refused for the field `path`; None if another field is at fault."""
    details = [detail for detail in error.errors() if detail["loc"][:1] == (path.rpartition(".")[2],)]
    if not details:
        return None
    if own := own_words(details[0]):
        return f"{shown(value)}: {own}", ""
    choices = [choice for choice in _choices(field) if isinstance(value, str)]
    near = _close(str(value).lower(), choices)
    return f"{shown(value)} is not {allowed(field)}", _did_you_mean([near]) if near else ""


def own_words(detail: ErrorDetails) -> str:
    """The message of the schema's own validator; "" where pydantic itself refused a type or a bound."""
    return str(detail["ctx"]["error"]) if detail["type"] in {"value_error", "assertion_error"} else ""


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `a whole number of at least 2 or none`."""
    kinds, choices = members(field), _choices(field)
    others = [_kind(kind) for kind in kinds if kind is not NoneType and get_origin(kind) is not Literal]
    words = " or ".join([*others, *choices]) if others else f"one of {', '.join(choices)}"
    if bounds := [bound for constraint in field.metadata if (bound := _bound(constraint))]:
        words += f"{' of' if bounds[0].startswith('at') else ''} {' and '.join(bounds)}"
    return words + (f"{',' * (' or ' in words)} or none" if NoneType in kinds else "")


_KINDS: Mapping[Any, str] = {
    str: "text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    datetime.date: "a date such as 2026-01-31",
    list: "a list of names",
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
    dict: "a mapping {a: b, c: d}",
}


def _kind(kind: Any) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return _KINDS.get(kind) or _KINDS[get_origin(kind)]


def members(field: FieldInfo) -> tuple[Any, ...]:
    """The types that a field takes: `(str, NoneType)` for `str | None`."""
    annotation = field.annotation
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _choices(field: FieldInfo) -> list[str]:
    return [str(choice) for kind in members(field) if get_origin(kind) is Literal for choice in get_args(kind)]


def _bound(constraint: object) -> str:
    match constraint:
        case annotated_types.Gt(limit):
            return f"above {limit}"
        case annotated_types.Ge(limit):
            return f"at least {limit}"
        case annotated_types.Lt(limit):
            return f"below {limit}"
        case annotated_types.Le(limit):
            return f"at most {limit}"
    return ""


def shown(value: Any) -> str:
    """A value for a message: on one line and not too long."""
    if isinstance(value, Mapping):
        return "a mapping"
    text = value if value is None or isinstance(value, (bool, int, float, str, list, tuple)) else str(value)
    words = json.dumps(text, ensure_ascii=False, default=str)
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} ..."


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; each value that is not a default has a comment with its origin.

    Read back by `read_yaml` and `resolve` it gives the same values, even if the method's defaults have changed.
    """
    return written(config.flat(), comments=config.origins)


def written(values: Mapping[str, Any], *, comments: Mapping[str, str]) -> str:
    """Values by full path as YAML, those of a section together in the given order; a value may have a comment."""
    lines = []
    for path, value in values.items():
        section, _, leaf = path.rpartition(".")
        if section and f"{section}:" not in lines:
            lines += ["", f"{section}:"]
        comment = f"  # {_one_line(comments[path])}" if comments.get(path) else ""
        lines.append(f"{'  ' if section else ''}{leaf or path}: {_yaml(path, value)}{comment}")
    return "\n".join(lines) + "\n"


def _yaml(path: str, value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(key)}: {_scalar(inner)}' for key, inner in value.items())}}}"
    # Where None is allowed too, the text "none" stays text only in quotes.
    optional = path in FIELDS and NoneType in members(FIELDS[path])
    return _scalar(value, quote=optional and str(value).lower() in NONE_WORDS and value is not None)


def _scalar(value: Any, *, quote: bool = False) -> str:
    """A scalar on one line of YAML, in double quotes where it is not plain text."""
    plain = _dump([value])
    return _dump([value], '"') if isinstance(value, str) and (quote or plain != value) else plain


def _dump(value: list[Any], style: str | None = None) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=math.inf, allow_unicode=True)
    return str(text).rstrip("\n")[1:-1]


def _one_line(origin: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in origin)


def _typed(default: Any) -> str:
    return "none" if default is None else _scalar(str(default) if isinstance(default, Path) else default)
