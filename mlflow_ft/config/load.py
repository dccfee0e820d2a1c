"""From what was given to one `Config`: schema < method < YAML < command line, with the place of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from mlflow_ft.config.explain import FIELDS, NONE_WORDS, SECTIONS, locate, members, own_words, refused, shown, unknown
from mlflow_ft.config.given import Given, headline, mapping_of, raise_all
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, Problem


def resolve(
    method: str,
    *,
    defaults: Mapping[str, Any],
    presets: Sequence[Given] = (),
    file: Sequence[Given] = (),
    command_line: Sequence[Given] = (),
) -> Config:
    """Lay the layers over each other; the problems of all of them are raised together.

    `presets` stand between the method's defaults and the file: the built-in data brings such settings.
    `method` is settled: a `method` in the file names its origin and otherwise yields, as YAML does everywhere.
    """
    problems: list[Problem] = []
    of_method = [Given(key=key, value=value, place=f"method {method}") for key, value in defaults.items()]
    values = _layer(of_method, problems)
    values |= _layer(presets, problems)
    values |= _layer([one for one in file if one.key != "method"], problems)
    values |= _layer([_typed(one) for one in command_line if one.key != "method"], problems)
    for one in command_line:
        if one.key == "method" and one.value != method:
            message = f"{shown(one.value)} was given, and {method} too"
            problems.append(Problem(place=one.place, message=message, hint="name one method"))
    raise_all(problems, "in the configuration")
    named = [one.place for one in (*file, *command_line) if one.key == "method" and one.value == method]
    origins = {"method": named[-1] if named else "asked for"} | {path: place for path, (_, place) in values.items()}
    return _build(method, {path: value for path, (value, _) in values.items()}, origins)


def _typed(given: Given) -> Given:
    """The command line has no types: every text there is like YAML's without quotes."""
    written = given.value if isinstance(given.value, str) else given.written
    return Given(key=given.key, value=given.value, place=given.place, written=written)


def _layer(given: Sequence[Given], problems: list[Problem]) -> dict[str, tuple[Any, str]]:
    """Path to value and place; a key or value that cannot be used becomes a problem."""
    layer: dict[str, tuple[Any, str]] = {}
    for one in given:
        place = one.place if one.place.startswith("--") else f"{one.place}  {one.key}"
        paths = locate(one.key)
        if len(paths) != 1:
            message, hint = unknown(one.key)
            problems.append(Problem(place=place, message=message, hint=hint))
            continue
        value, refusal = _validated(paths[0], one)
        if refusal:
            problems.append(Problem(place=place, message=refusal[0], hint=refusal[1]))
        elif paths[0] in layer and layer[paths[0]][0] != value:
            message = f"{paths[0]} is {shown(layer[paths[0]][0])} already, by {layer[paths[0]][1]}"
            problems.append(Problem(place=place, message=message, hint="keep one of them"))
        else:
            layer[paths[0]] = (value, one.place)
    return layer


def _coerce(path: str, given: Given) -> Any:
    """What was given as pydantic can take it: text for a scalar, so that every layer obeys one set of rules."""
    kinds = members(FIELDS[path])
    takes_list, takes_mapping = (any(get_origin(kind) is one for kind in kinds) for one in (list, dict))
    takes_text = str in kinds
    text = _text(given)
    if text is not None and text.lower() in NONE_WORDS and type(None) in kinds:
        return None
    value = given.value if text is None else text
    if isinstance(value, list) and isinstance(given.written, list):
        return given.written
    if isinstance(value, str) and takes_list and (not takes_text or (text is not None and _in_brackets(text))):
        inside = value[1:-1] if _in_brackets(value) else value
        return [_unquoted(item.strip()) for item in inside.split(",")] if inside.strip() else []
    if isinstance(value, str) and takes_mapping and (not takes_text or (text is not None and _in_brackets(text, "{}"))):
        return _as_mapping(value)
    return value


def _as_mapping(text: str) -> Any:
    """`{a: 1, b: 2}`, as in YAML, or `a=1,b=2`; the text itself, which no such field takes, where it is neither."""
    if text[:1] == "{" and text[-1:] == "}":
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        except yaml.YAMLError:
            return text
        return mapping_of(node, loader) if isinstance(node, yaml.MappingNode) else text
    pairs = [item.partition("=") for item in _items(text)]
    found = {name.strip(): value.strip() for name, equals, value in pairs if equals and name.strip() and value.strip()}
    return found if len(found) == len(pairs) else text


def _items(text: str) -> list[str]:
    """What stands between the commas that are not within brackets: `a=1,b={c: 2, d: 3}` is two."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter in "{[(") - (letter in ")]}")
        if letter == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += letter
    return found


def _text(given: Given) -> str | None:
    if isinstance(given.written, str):
        return given.written
    if isinstance(given.value, bool):
        return str(given.value).lower()  # pydantic would take True for 1
    return str(given.value) if isinstance(given.value, (int, float)) else None


def _in_brackets(text: str, brackets: str = "[]") -> bool:
    """`[a, b]` is a list; `[qk]_proj[0-9]` is a regular expression."""
    return text[:1] == brackets[0] and text[-1:] == brackets[1] and not set(text[1:-1]) & set(brackets)


def _unquoted(item: str) -> str:
    return item[1:-1] if len(item) > 1 and item[0] == item[-1] and item[0] in "'\"" else item


def _validated(path: str, given: Given) -> tuple[Any, tuple[str, str] | None]:
    """The value as the schema takes it, or what speaks against it."""
    section, _, leaf = path.partition(".")
    value = _coerce(path, given)
    try:
        return getattr(SECTIONS[section].model_validate({leaf: value}), leaf), None
    except ValidationError as error:
        return value, refused(path, given.value, error)


def _build(method: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for path, value in values.items():
        section, _, leaf = path.partition(".")
        nested[section][leaf] = value
    try:
        return Config.model_validate({"method": method, **nested, "origins": origins})
    except ValidationError as error:  # every value is good by itself: what is left is what a validator says of several
        problems = []
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"]) or "configuration"
            problems.append(Problem(place=origins.get(path, path), message=own_words(detail) or detail["msg"]))
        raise ConfigError(headline(problems, "in the configuration"), problems=problems) from error
