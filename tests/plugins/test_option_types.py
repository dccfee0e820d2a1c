"""Which classes can hold the options of a plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge

from mlflow_ft.plugins import option_types


@dataclass
class Fine:
    text: str = ""
    count: Annotated[int, Ge(1)] = 1
    share: float | None = None
    file: Path = Path()
    order: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    rubrics: dict[str, Any] | None = None


@dataclass
class WithoutDefault:
    endpoint: str


@dataclass
class OfNoKnownType:
    model: object = None


def test_what_yaml_can_say_is_taken() -> None:
    option_types.check(Fine)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (dict, "must be a dataclass"),
        (Fine(), "must be a dataclass"),
        (WithoutDefault, "endpoint of WithoutDefault has no default"),
        (OfNoKnownType, "model of OfNoKnownType is a <class 'object'>; options are text, numbers"),
    ],
)
def test_what_cannot_be_set_is_refused(kind: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        option_types.check(kind)
