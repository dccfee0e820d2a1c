"""The options of plugins: dataclasses of theirs, checked like our own sections, set as `plugins.NAME.key`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from mlflow_ft.config.explain import CORE, OF_PLUGINS, SECTIONS, Schema
from mlflow_ft.config.section import Section
from mlflow_ft.errors import ConfigError, Problem


def canonical(key: str) -> str:
    """A key as it is looked up: in the name of a plugin's options, `-` and `_` are the same."""
    return key.replace("-", "_") if key.startswith(f"{OF_PLUGINS}.") else key


def schema_with(options: Mapping[str, type]) -> Schema:
    """The core's fields and those of plugins' options."""
    sections = {**SECTIONS, **{_section_name(name): section(kind) for name, kind in options.items()}}
    fields = dict(CORE.fields)
    for name in options:
        path = _section_name(name)
        fields |= {f"{path}.{leaf}": field for leaf, field in sections[path].model_fields.items()}
    return Schema(sections, fields)


class _OfPlugin(Section):
    """What is made of a dataclass: pydantic would search every module for its source, in vain."""

    model_config = ConfigDict(use_attribute_docstrings=False)


@cache
def section(kind: type) -> type[Section]:
    """A dataclass as a section, which checks its values; its types were checked when the plugin was loaded."""
    assert dataclasses.is_dataclass(kind)
    docs, hints = _field_docs(kind), typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        described: dict[str, Any] = {"description": docs.get(field.name)}
        if field.default_factory is not dataclasses.MISSING:
            described["default_factory"] = field.default_factory
        else:
            described["default"] = field.default
        fields[field.name] = Annotated[hints[field.name], Field(**described)]
    return create_model(kind.__name__, __base__=_OfPlugin, **fields)


def made(
    options: Mapping[str, type], values: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]
) -> dict[str, Any]:
    """An instance of each plugin's options, with the given values.

    Raises:
        ConfigError: a plugin's own `__post_init__` refuses them with a ValueError.
    """
    instances: dict[str, Any] = {}
    for name, kind in options.items():
        path = _section_name(name)
        try:
            instances[path.removeprefix(f"{OF_PLUGINS}.")] = kind(**values[path])
        except ValueError as error:
            given = ", ".join(origins[f"{path}.{leaf}"] for leaf in values[path])
            problem = Problem(place=f"{path} ({given})" if given else path, message=str(error))
            raise ConfigError("1 problem in the configuration", problems=[problem]) from error
    return instances


def _section_name(name: str) -> str:
    return canonical(f"{OF_PLUGINS}.{name}")


def _field_docs(kind: type) -> dict[str, str]:
    """The texts below the fields in the source; empty where there is no source."""
    try:
        [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = inspect.cleandoc(below.value.value)
    return docs
