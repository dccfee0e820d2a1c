"""Which dataclasses can hold the options of a plugin; found without pydantic, which takes long to import."""

from __future__ import annotations

import dataclasses
import datetime
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

SCALARS = (str, int, float, bool, Path, datetime.date, NoneType)
WORDS = "text, numbers, true or false, paths, dates, choices (Literal), and lists and mappings of these"


def check(kind: Any) -> None:
    """Refuse a class whose fields could not be set in YAML and on the command line.

    Raises:
        TypeError: it is no dataclass, a field has no default, or a field takes something else.
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"options must be a dataclass, not {kind!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise TypeError(f"the option {field.name} of {kind.__name__} has no default")
        if not _can_be_set(hints[field.name]):
            raise TypeError(f"the option {field.name} of {kind.__name__} is a {hints[field.name]}; options are {WORDS}")


def _can_be_set(annotation: Any) -> bool:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _can_be_set(inner[0])
    if origin in (Union, UnionType, list, dict):
        return all(part is Any or _can_be_set(part) for part in inner)
    return annotation in SCALARS or origin is Literal
