"""From what was given to one `Config`: schema < method < YAML < command line, with the place of every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from mlflow_ft.config.explain import FIELDS, NONE_WORDS, SECTIONS, locate, members, own_words, refused, shown, unknown
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value as a layer gave it."""

    key: str
    """As typed: `adapter.r`, `learning_rate`, `model`."""
    value: Any
    """Text from the command line, anything from YAML."""
    place: str
    """Where it stands: `qlora.yaml line 12`, `--learning_rate (command line)`, `method qlora`."""
    written: Any = None
    """The letters that YAML made `value` of, where they stood without quotes: `0123` for 83, `1e-4`, `yes`."""


def pairs(arguments: Sequence[str]) -> list[Given]:
    """`--key value` and `--key=value` from the command line; an empty value means that none was given.

    A key takes whatever follows it, so that a value may begin with a dash.
    """
    given, problems = [], []
    tokens, previous = iter(arguments), ""
    for token in tokens:
        typed, equals, value = token.partition("=")
        key = typed.removeprefix("--").replace("-", "_")
        if not token.startswith("--") or not key.strip("_"):
            problems.append(_stray(token, previous))
            previous = ""
            continue
        following = value if equals else next(tokens, None)
        if following is None:
            problems.append(Problem(place=token, message="has no value", hint=f"write {token} VALUE or {token}=VALUE"))
        elif following:
            given.append(Given(key=key, value=following, place=f"{typed} (command line)"))
        previous = f"{typed} {following}" if following and following.startswith("--") and not equals else ""
    _raise(problems, "on the command line")
    return given


def _stray(token: str, previous: str) -> Problem:
    hint = f'a switch needs a value too: "{previous}" was read as key and value' if previous else ""
    return Problem(place=shown(token), message="is not --key value or --key=value", hint=hint)


def read_yaml(path: Path) -> list[Given]:
    """Every value of a YAML file with its line; what the keys and values mean is for `resolve` to say."""
    problems: list[Problem] = []
    text = ""
    try:
        text = path.read_bytes().decode("utf-8")
        loader = yaml.SafeLoader(text)
        given = list(_walk(loader.get_single_node(), loader=loader, file=path.name, problems=problems))
    except OSError as error:
        reason = f"cannot read {path}: {error.strerror or error}"
        raise ConfigError(reason, hint="give the path of a YAML file that exists and may be read") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} line {line}: not UTF-8 text", hint="save the file as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply", hint="write section: and its fields below it") from error
    except yaml.YAMLError as error:
        raise _syntax(path, text, error) from error
    _raise(problems, f"in {path}")
    return given


def _syntax(path: Path, text: str, error: yaml.YAMLError) -> ConfigError:
    hint = "check the indentation, the colons and the quotes there and just above"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        line, reason = mark.line + 1, error.problem or error.context
        if "\\t" in str(reason):
            hint = "indent with spaces, not with tabs"
        elif "constructor" in str(reason):
            hint = "remove the tag that begins with !"
    else:
        line, reason = text.count("\n", 0, getattr(error, "position", 0)) + 1, getattr(error, "reason", str(error))
        hint = "remove the control characters there"
    return ConfigError(f"{path} line {line}: not YAML: {reason}", hint=hint)


def _walk(
    node: yaml.Node | None, *, loader: yaml.SafeLoader, file: str, problems: list[Problem], section: str = ""
) -> Iterator[Given]:
    """The leaves of a mapping: two levels, since a field's value is never a mapping."""
    if node is None or _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        hint = "write `section:` and below it, indented, `field: value`"
        problems.append(Problem(place=_line(file, node), message="is no mapping of keys to values", hint=hint))
        return
    seen: dict[str, str] = {}
    for key_node, value_node in node.value:
        place = _line(file, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(place=place, message="a key must be text", hint="write `field: value`"))
            continue
        key = f"{section}.{key_node.value}" if section else key_node.value
        if key in seen:
            message = f"{key}: given before, at {seen[key]}"
            problems.append(Problem(place=place, message=message, hint="keep one of them"))
            continue
        seen[key] = place
        if isinstance(value_node, yaml.MappingNode) and not section:
            yield from _walk(value_node, loader=loader, file=file, problems=problems, section=key)
        elif key not in SECTIONS or not _is_null(value_node):  # a section with all its fields commented out is none
            value, written = _value(value_node, loader)
            yield Given(key=key, value=value, place=place, written=written)


def _value(node: yaml.Node, loader: yaml.SafeLoader) -> tuple[Any, Any]:
    """A leaf as YAML means it, and as it is written where that can differ."""
    if isinstance(node, yaml.SequenceNode):
        items = [_value(one, loader) if isinstance(one, yaml.ScalarNode) else ({}, None) for one in node.value]
        return [value for value, _ in items], [value if written is None else written for value, written in items]
    if not isinstance(node, yaml.ScalarNode):
        return {}, None
    if node.tag.endswith((":value", ":merge")):  # `=` and `<<`, which mean nothing here and which PyYAML trips over
        return node.value, node.value
    try:
        value = loader.construct_object(node)
    except ValueError:  # looks like a date or a number and is none: 2024-13-45
        value = node.value
    return value, node.value if node.style is None and value is not None else None


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(file: str, node: yaml.Node) -> str:
    return f"{file} line {node.start_mark.line + 1}"


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
    _raise(problems, "in the configuration")
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
    takes_list, takes_text = any(get_origin(kind) is list for kind in kinds), str in kinds
    text = _text(given)
    if text is not None and text.lower() in NONE_WORDS and type(None) in kinds:
        return None
    value = given.value if text is None else text
    if isinstance(value, list) and isinstance(given.written, list):
        return given.written
    if isinstance(value, str) and takes_list and (not takes_text or (text is not None and _in_brackets(text))):
        inside = value[1:-1] if _in_brackets(value) else value
        return [_unquoted(item.strip()) for item in inside.split(",")] if inside.strip() else []
    return value


def _text(given: Given) -> str | None:
    if isinstance(given.written, str):
        return given.written
    if isinstance(given.value, bool):
        return str(given.value).lower()  # pydantic would take True for 1
    return str(given.value) if isinstance(given.value, (int, float)) else None


def _in_brackets(text: str) -> bool:
    """`[a, b]` is a list; `[qk]_proj[0-9]` is a regular expression."""
    return text.startswith("[") and text.endswith("]") and not set(text[1:-1]) & set("[]")


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
        raise ConfigError(_headline(problems, "in the configuration"), problems=problems) from error


def _headline(problems: Sequence[Problem], where: str) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) != 1)} {where}"


def _raise(problems: Sequence[Problem], where: str) -> None:
    if problems:
        raise ConfigError(_headline(problems, where), problems=problems)
