"""Options of plugins: checked like our own settings, with hints, and kept in the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from mlflow_ft import ConfigError
from mlflow_ft.config import Config, Given, pairs, read_yaml, resolve, to_yaml
from mlflow_ft.config.plugin_options import section


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Options of a judge."""

    endpoint: str = ""
    """Where it answers."""
    votes: Annotated[int, Ge(1)] = 1
    """How often it is asked."""
    order: Literal["both", "first"] = "both"
    """Which order is shown."""
    rubrics: list[str] | None = None
    """What is judged."""

    def __post_init__(self) -> None:
        if self.order == "first" and self.votes > 1:
            raise ValueError("votes above 1 need both orders")


OPTIONS = {"the-judge": Judging}


def resolved(*arguments: str, file: list[Given] | None = None) -> Config:
    return resolve("full", defaults={}, file=file or [], command_line=pairs(arguments), options=OPTIONS)


def test_options_are_typed_and_read_by_their_class() -> None:
    config = resolved("--plugins.the-judge.votes", "3", "--plugins.the_judge.rubrics", "[short, true]")
    assert config.options(Judging) == Judging(votes=3, rubrics=["short", "true"])
    assert config.flat()["plugins.the_judge.votes"] == 3
    assert config.origins["plugins.the_judge.votes"] == "--plugins.the-judge.votes (command line)"
    assert resolved().options(Judging) == Judging()
    assert not [path for path in resolved().flat() if path.startswith("plugins.the")]


@pytest.mark.parametrize("text", ["plugins:\n  the-judge:\n    votes: 2\n", "plugins.the_judge:\n  votes: 2\n"])
def test_yaml_has_them_below_plugins(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    config = resolved(file=read_yaml(file))
    assert config.options(Judging).votes == 2
    assert config.origins["plugins.the_judge.votes"].startswith("c.yaml line ")


def test_the_written_configuration_gives_the_same_again(tmp_path: Path) -> None:
    config = resolved("--plugins.the-judge.endpoint", "http://127.0.0.1", "--plugins.allow", "[a, b]")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    again = resolved(file=[given for given in read_yaml(file) if given.key != "method"])
    assert again.flat() == config.flat()
    assert again.plugins.allow == ["a", "b"]


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("--plugins.the-judge.vots", "1", "unknown key; did you mean plugins.the_judge.votes?"),
        ("--plugins.the-judge.x", "1", "plugins.the_judge has endpoint, votes, order, rubrics"),
        (
            "--plugins.the-judg.votes",
            "1",
            "no active plugin has options named the_judg; did you mean plugins.the_judge?",
        ),
        ("--plugins.zzz.votes", "1", "no active plugin has options named zzz; known: plugins.the_judge"),
        ("--plugins.the-judge.votes", "0", '"0" is not a whole number of at least 1'),
        ("--plugins.the-judge.order", "frst", '"frst" is not one of both, first; did you mean first?'),
        ("--plugins.the-judge", "1", "a section, not a field; plugins.the_judge has endpoint"),
        ("--votes", "1", "unknown key"),
    ],
)
def test_wrong_ones_are_refused_with_a_hint(argument: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolved(argument, value)
    assert expected in str(refused.value)
    assert argument in str(refused.value)


def test_what_the_plugin_itself_refuses_names_the_places() -> None:
    with pytest.raises(ConfigError, match="votes above 1 need both orders") as refused:
        resolved("--plugins.the-judge.votes", "2", "--plugins.the-judge.order", "first")
    assert "--plugins.the-judge.order (command line)" in str(refused.value)


def test_each_option_is_described() -> None:
    assert section(Judging).model_fields["votes"].description == "How often it is asked."
