"""Resolves given settings into one `Config`: schema < method < YAML < command line, with every value's origin."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mlflow_ft.config.explain import NONE_WORDS, Schema, locate, members, own_words, refused, shown, unknown
from mlflow_ft.config.given import Given, headline, mapping_of, raise_all
from mlflow_ft.config.plugin_options import canonical, made, schema_with
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, Problem


def resolve(
    method: str,
    *,
    defaults: Mapping[str, Any],
    presets: Sequence[Given] = (),
    file: Sequence[Given] = (),
    command_line: Sequence[Given] = (),
    options: Mapping[str, type] | None = None,
) -> Config:
    """Merge the layers; the problems of all of them are raised together.

    `presets` come between the method's defaults and the file: the built-in data has such settings.
    `options` are the dataclasses of the plugins' options by name, for `plugins.NAME.key`.
    `method` is already chosen: a `method` in the file only names its origin, since the command line overrides YAML.
    """
    schema = schema_with(options or {})
    problems: list[Problem] = []
    of_method = [Given(key=key, value=value, place=f"method {method}") for key, value in defaults.items()]
    values = _layer(of_method, schema, problems)
    values |= _layer(presets, schema, problems)
    values |= _layer([given for given in file if given.key != "method"], schema, problems)
    values |= _layer([_typed(given) for given in command_line if given.key != "method"], schema, problems)
    for given in command_line:
        if given.key == "method" and given.value != method:
            message = f"both {shown(given.value)} and {method} were given"
            problems.append(Problem(place=given.place, message=message, hint="name one method"))
    raise_all(problems, "in the configuration")
    named = [given.place for given in (*file, *command_line) if given.key == "method" and given.value == method]
    origins = {"method": named[-1] if named else "asked for"} | {path: place for path, (_, place) in values.items()}
    return _build(method, {path: value for path, (value, _) in values.items()}, origins, schema, options or {})


def _typed(given: Given) -> Given:
    """The command line has no types: all text there counts as unquoted YAML."""
    written = given.value if isinstance(given.value, str) else given.written
    return Given(key=given.key, value=given.value, place=given.place, written=written)


def _layer(settings: Sequence[Given], schema: Schema, problems: list[Problem]) -> dict[str, tuple[Any, str]]:
    """Path to value and place; a key or value that cannot be used becomes a problem."""
    layer: dict[str, tuple[Any, str]] = {}
    for given in settings:
        place = given.place if given.place.startswith("--") else f"{given.place}  {given.key}"
        paths = locate(canonical(given.key), schema)
        if len(paths) != 1:
            message, hint = unknown(canonical(given.key), schema)
            problems.append(Problem(place=place, message=message, hint=hint))
            continue
        value, refusal = _validated(paths[0], given, schema)
        if refusal:
            problems.append(Problem(place=place, message=refusal[0], hint=refusal[1]))
        elif paths[0] in layer and layer[paths[0]][0] != value:
            message = f"{paths[0]} is already {shown(layer[paths[0]][0])}, from {layer[paths[0]][1]}"
            problems.append(Problem(place=place, message=message, hint="keep one of them"))
        else:
            layer[paths[0]] = (value, given.place)
    return layer


def _coerce(field: FieldInfo, given: Given) -> Any:
    """The given value in a form for pydantic: text for a scalar, so that every layer follows the same rules."""
    kinds = members(field)
    takes_list, takes_mapping = (any(get_origin(kind) is origin for kind in kinds) for origin in (list, dict))
    takes_text = str in kinds
    text = _text(given)
    if text is not None and text.lower() in NONE_WORDS and type(None) in kinds:
        return None
    value = given.value if text is None else text
    if isinstance(value, list) and isinstance(given.written, list):
        return given.written
    listed = not takes_text or (text is not None and (_in_brackets(text) or _names(text, given.key)))
    if isinstance(value, str) and takes_list and listed:
        inside = value[1:-1] if _in_brackets(value) else value
        return [_unquoted(item.strip()) for item in inside.split(",")] if inside.strip() else []
    if isinstance(value, str) and takes_mapping and (not takes_text or (text is not None and _in_brackets(text, "{}"))):
        return _as_mapping(value)
    return value


def _names(text: str, key: str) -> bool:
    """Whether the text is several names: `q_proj,v_proj`, but no pattern, and no path, which may have a comma."""
    return not key.endswith("path") and re.fullmatch(r"[\w.-]+(\s*,\s*[\w.-]+)+", text) is not None


def _as_mapping(text: str) -> Any:
    """`{a: 1, b: 2}`, as in YAML, or `a=1,b=2`; where it is neither, the text itself, which no such field takes."""
    if text[:1] == "{" and text[-1:] == "}":
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        except yaml.YAMLError:
            return text
        return mapping_of(node, loader) if isinstance(node, yaml.MappingNode) else text
    pairs = [item.partition("=") for item in _items(text)]
    values = {name.strip(): value.strip() for name, equals, value in pairs if equals and name.strip() and value.strip()}
    return values if len(values) == len(pairs) else text


def _items(text: str) -> list[str]:
    """The parts between commas that are not within brackets: `a=1,b={c: 2, d: 3}` has two."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in ")]}")
        if character == "," and depth <= 0:
            items.append("")
        else:
            items[-1] += character
    return items


def _text(given: Given) -> str | None:
    if isinstance(given.written, str):
        return given.written
    if isinstance(given.value, bool):
        return str(given.value).lower()  # pydantic would read True as 1
    return str(given.value) if isinstance(given.value, (int, float)) else None


def _in_brackets(text: str, brackets: str = "[]") -> bool:
    """`[a, b]` is a list; `[qk]_proj[0-9]` is a regular expression."""
    return text[:1] == brackets[0] and text[-1:] == brackets[1] and not set(text[1:-1]) & set(brackets)


def _unquoted(item: str) -> str:
    return item[1:-1] if len(item) > 1 and item[0] == item[-1] and item[0] in "'\"" else item


def _validated(path: str, given: Given, schema: Schema) -> tuple[Any, tuple[str, str] | None]:
    """The value as the schema takes it, or why it is refused."""
    section, _, leaf = path.rpartition(".")
    value = _coerce(schema.fields[path], given)
    try:
        return getattr(schema.sections[section].model_validate({leaf: value}), leaf), None
    except ValidationError as error:
        return value, refused(path, given.value, error, schema.fields[path])


def _build(
    method: str, values: Mapping[str, Any], origins: Mapping[str, str], schema: Schema, options: Mapping[str, type]
) -> Config:
    nested: dict[str, dict[str, Any]] = {section: {} for section in schema.sections}
    for path, value in values.items():
        section, _, leaf = path.rpartition(".")
        nested[section][leaf] = value
    of_plugins = made(options, nested, origins)
    core = {section: fields for section, fields in nested.items() if "." not in section}
    try:
        return Config.model_validate({"method": method, **core, "origins": origins, "plugin_options": of_plugins})
    except ValidationError as error:  # each value alone is valid: this is a validator of several values
        problems = []
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"]) or "configuration"
            problems.append(Problem(place=origins.get(path, path), message=own_words(detail) or detail["msg"]))
        raise ConfigError(headline(problems, "in the configuration"), problems=problems) from error
