"""Further fields of a library's config class: typed, checked by name, and rejected with the class's own message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mlflow_ft.engine import options
from mlflow_ft.errors import ConfigError


@dataclass
class Settings:
    rate: float = 0.1
    names: list[str] | None = None
    on: bool = False
    most: int | float = 1
    weight: float | None = None
    when: str | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate is negative")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("7", 7),
        ("true", True),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("a: b: c", "a: b: c"),
        ("x", "x"),
    ],
)
def test_text_is_what_yaml_takes_it_for(text: str, value: Any) -> None:
    assert options.value(text) == value


def test_every_option_is_a_field() -> None:
    assert options.typed({"rate": "1e-3", "on": "true"}, Settings, section="objective") == {"rate": 0.001, "on": True}
    assert options.typed(None, Settings, section="objective") == {}
    with pytest.raises(ConfigError, match="Settings has no field 'rte'") as error:
        options.typed({"rte": "1"}, Settings, section="objective")
    assert error.value.hint == "did you mean rate?"


@pytest.mark.parametrize(("name", "text", "value"), [("weight", "0", 0.0), ("rate", "1", 1.0), ("most", "2", 2)])
def test_a_whole_number_is_a_float_where_the_field_takes_no_other(name: str, text: str, value: float) -> None:
    typed = options.typed({name: text}, Settings, section="objective")[name]
    assert (typed, type(typed)) == (value, type(value))


@pytest.mark.parametrize(("name", "text", "value"), [("when", "no", "no"), ("when", "off", "off"), ("on", "no", False)])
def test_a_word_of_yaml_stays_a_word_where_the_field_takes_text(name: str, text: str, value: object) -> None:
    assert options.typed({name: text}, Settings, section="objective") == {name: value}


@pytest.mark.parametrize(("name", "text"), [("weight", "high"), ("rate", "[1, 2]"), ("on", "maybe")])
def test_text_is_not_a_number(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"objective.options: {name} must be .*, not"):
        options.typed({name: text}, Settings, section="objective")
    assert options.typed({name: "null"}, Settings, section="objective") == {name: None}


def test_what_another_setting_says_is_not_an_option() -> None:
    with pytest.raises(ConfigError, match="rate has its own setting"):
        options.typed({"rate": "1"}, Settings, section="objective", ours={"rate": 0.2})


def test_the_class_says_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="Settings rejects the settings: rate is negative"):
        options.made(Settings, {"rate": -1}, section="objective")
    assert options.made(Settings, {"rate": 2}, section="objective") == Settings(rate=2)
