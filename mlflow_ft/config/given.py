"""Settings as they were given, before they are interpreted: `--key value` pairs, and YAML with line numbers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlflow_ft.config.explain import FIELDS, OF_PLUGINS, SECTIONS, shown
from mlflow_ft.config.section import InLine
from mlflow_ft.errors import ConfigError, Problem

ASIDE = "x-"
"""The beginning of keys at the top of a file that hold anchors for others, as in Compose files."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value as a layer gave it."""

    key: str
    """As typed: `adapter.r`, `learning_rate`, `model`."""
    value: Any
    """Text from the command line, anything from YAML."""
    place: str
    """Where it was given: `qlora.yaml line 12`, `--learning_rate (command line)`, `method qlora`."""
    written: Any = None
    """The unquoted text from which YAML made `value`: `0123` for 83, `1e-4`, `yes`."""


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
    raise_all(problems, "on the command line")
    return given


def _stray(token: str, previous: str) -> Problem:
    hint = f'a switch needs a value too: "{previous}" was read as key and value' if previous else ""
    return Problem(place=shown(token), message="is not --key value or --key=value", hint=hint)


def read_yaml(path: Path) -> list[Given]:
    """Every value of a YAML file with its line; `resolve` interprets keys and values."""
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
        raise syntax_error(str(path), text, error) from error
    raise_all(problems, f"in {path}")
    return given


def syntax_error(place: str, text: str, error: yaml.YAMLError) -> ConfigError:
    """What is wrong with a text that is not YAML, and where; `place` is its name in the message."""
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
    return ConfigError(f"{place} line {line}: not YAML: {reason}", hint=hint)


def _walk(
    node: yaml.Node | None, *, loader: yaml.SafeLoader, file: str, problems: list[Problem], section: str = ""
) -> Iterator[Given]:
    """The leaves of a mapping: two levels, and three for plugins, below which a mapping is a field's value."""
    if node is None or _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode):
        hint = "write `section:` and below it, indented, `field: value`"
        problems.append(Problem(place=_line(file, node), message="is not a mapping of keys to values", hint=hint))
        return
    seen: dict[str, str] = {}
    for key_node, value_node in _with_merged(node):
        place = _line(file, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(place=place, message="a key must be text", hint="write `field: value`"))
            continue
        if not section and key_node.value.startswith(ASIDE):
            continue
        key = f"{section}.{key_node.value}" if section else key_node.value
        if key in seen:
            message = f"{key} is already given at {seen[key]}"
            problems.append(Problem(place=place, message=message, hint="keep one of them"))
            continue
        seen[key] = place
        if isinstance(value_node, yaml.MappingNode) and section in ("", OF_PLUGINS) and key not in FIELDS:
            yield from _walk(value_node, loader=loader, file=file, problems=problems, section=key)
        elif key not in SECTIONS or not _is_null(value_node):  # ignore a section whose fields are all commented out
            value, written = _value(value_node, loader)
            yield Given(key=key, value=value, place=place, written=written)


def _with_merged(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a mapping, and those of `<<: *ANCHOR` that it does not have itself."""
    own = [(key, value) for key, value in node.value if not _merges(key, value)]
    known = {str(key.value) for key, _ in own}
    merged = []
    for key, value in node.value:
        if _merges(key, value):
            for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                new = [(name, inner) for name, inner in _with_merged(mapping) if str(name.value) not in known]
                known |= {str(name.value) for name, _ in new}
                merged += new
    return merged + own


def _merges(key: yaml.Node, value: yaml.Node) -> bool:
    mappings = value.value if isinstance(value, yaml.SequenceNode) else [value]
    return key.tag.endswith(":merge") and all(isinstance(mapping, yaml.MappingNode) for mapping in mappings)


def _value(node: yaml.Node, loader: yaml.SafeLoader) -> tuple[Any, Any]:
    """A leaf as YAML means it, and as it is written where that can differ."""
    if isinstance(node, yaml.SequenceNode):
        items = [_value(item, loader) if isinstance(item, yaml.ScalarNode) else ({}, None) for item in node.value]
        return [value for value, _ in items], [value if written is None else written for value, written in items]
    if isinstance(node, yaml.MappingNode):
        return mapping_of(node, loader), None
    if not isinstance(node, yaml.ScalarNode):
        return {}, None
    if node.tag.endswith((":value", ":merge")):  # `=` and `<<`, which have no meaning here and make PyYAML fail
        return node.value, node.value
    try:
        value = loader.construct_object(node)
    except ValueError:  # looks like a date or a number but is not: 2024-13-45
        value = node.value
    return value, node.value if node.style is None and value is not None else None


def mapping_of(node: yaml.MappingNode, loader: yaml.SafeLoader) -> dict[Any, Any]:
    """Names to values, each as it is written; a nested list or mapping becomes its text on one line."""
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        value, written = _value(value_node, loader)
        if not isinstance(value_node, yaml.ScalarNode):
            value, written = InLine(str(yaml.serialize(_in_line(value_node), width=sys.maxsize)).strip()), None
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        mapping[key] = {} if key in mapping else value if written is None else written
    return mapping


def _in_line(node: yaml.Node) -> yaml.Node:
    """The node, with every list and mapping in brackets."""
    if isinstance(node, yaml.CollectionNode):
        node.flow_style = True
        members = (member if isinstance(member, tuple) else (member,) for member in node.value)
        for child in itertools.chain.from_iterable(members):
            _in_line(child)
    return node


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(file: str, node: yaml.Node) -> str:
    return f"{file} line {node.start_mark.line + 1}"


def headline(problems: Sequence[Problem], where: str) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) != 1)} {where}"


def raise_all(problems: Sequence[Problem], where: str) -> None:
    if problems:
        raise ConfigError(headline(problems, where), problems=problems)
