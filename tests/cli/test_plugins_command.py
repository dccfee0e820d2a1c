"""`plugins`, `hooks` and the commands that plugins add, as a user sees them."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from tests.installed import GOOD, Install

COMMAND = """
import click
from mlflow_ft import Command, DataError, hookimpl

@click.command()
@click.option("--times", default=1)
def greet(times):
    if times < 1:
        raise DataError("too few", hint="greet once")
    click.echo("hello " * times)

def load():
    return {body}

@hookimpl
def register_commands():
    return [Command(name="{name}", summary="Greets.", load=load)]
"""


def test_the_table_has_status_version_reason_and_records(run: Run, install: Install) -> None:
    install("ft_good", GOOD.format(name="good"))
    install("ft_wrong", "1 / 0")
    lines = {line.split()[0]: line for line in run("plugins").out.splitlines()}
    assert lines["ft_good"].split()[1:3] == ["active", "1.5"]
    assert lines["ft_good"].endswith("adapters good")
    assert "broken" in lines["ft_wrong"]
    assert "ZeroDivisionError" in lines["ft_wrong"]
    verbose = run("plugins", "--verbose").out
    assert "module ft_good" in verbose
    assert "adapter good" in verbose


def test_check_fails_for_a_broken_one(run: Run, install: Install) -> None:
    install("ft_good", GOOD.format(name="good"))
    assert run("plugins", "--check").code == 0
    install("ft_wrong", "1 / 0")
    assert run("plugins").code == 0
    checked = run("plugins", "--check")
    assert checked.code == 2
    assert "cannot be used: ft_wrong" in checked.err


def test_hooks_are_listed_with_who_implements_them(run: Run, install: Install) -> None:
    install("ft_good", GOOD.format(name="good"))
    rows = {row["name"]: row for row in json.loads(run("hooks", "--json").out)}
    assert rows["register_adapters"]["plugins"] == ["builtin.adapters", "ft_good"]
    assert rows["before_train"]["arguments"] == ["job", "data", "model"]
    [line] = [line for line in run("hooks").out.splitlines() if line.startswith("register_adapters ")]
    assert line.endswith("(ft_good)")
    one = run("hooks", "before_train").out
    assert "before the first step" in one
    wrong = run("hooks", "before_trian")
    assert wrong.code == 2
    assert "did you mean before_train?" in wrong.err


def test_a_plugins_command_is_listed_and_runs(run: Run, install: Install) -> None:
    install("ft_greet", COMMAND.format(body="greet", name="greet"))
    helped = run("--help").out
    assert "Commands of plugins" in helped
    assert "Greets. (ft_greet)" in helped
    assert run("greet", "--times", "2").out.split() == ["hello", "hello"]
    refused = run("greet", "--times", "0")
    assert (refused.code, refused.err) == (2, "Error: too few\n  greet once\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "plugin ft_greet, command 'greet': load raised ZeroDivisionError"),
        ("3", "load returned 3; it must return a click command"),
    ],
)
def test_a_command_that_cannot_be_loaded_names_its_plugin(run: Run, install: Install, body: str, said: str) -> None:
    install("ft_greet", COMMAND.format(body=body, name="greet"))
    failed = run("greet")
    assert failed.code == 2
    assert said in failed.err
    assert "Greets." in run("--help").out


def test_a_built_in_command_is_not_replaced(run: Run, install: Install) -> None:
    install("ft_greet", COMMAND.format(body="greet", name="runs"))
    assert "hello" not in run("runs", "--help").out
    assert "Not available: a built-in command has this name" in " ".join(run("--help").out.split())
